// Owns the tests of what counts as known of the kernel.
import assert from 'node:assert/strict';
import { KernelView } from '../../../plugin/kernel-view.ts';

describe('what is known of the kernel', () => {
  let kernel: string;
  let reads: number;
  let meanwhile: () => void;
  let now: number;
  let view: KernelView<string>;

  beforeEach(() => {
    [kernel, reads, meanwhile, now] = ['as written', 0, () => undefined, 1_000];
    view = new KernelView(
      async () => {
        reads += 1;
        const read = kernel;
        await Promise.resolve();
        meanwhile();
        return read;
      },
      () => now,
    );
  });

  async function pass(idle = true): Promise<string> {
    view.begin(idle);
    return view.get();
  }

  it('the kernel is read by the first pass, and the next ones trust that', async () => {
    assert.equal(await pass(), 'as written');
    assert.deepEqual([view.isFresh, view.readAt], [true, 1_000]);
    view.write('as written by a pass');
    [kernel, now] = ['changed by others', 2_000];
    assert.equal(await pass(), 'as written by a pass');
    assert.deepEqual([view.isFresh, view.readAt, reads], [false, 1_000, 1]);
  });

  it('a look beside the passes counts where nothing was written meanwhile', async () => {
    await pass();
    view.write('as written');
    [kernel, now] = ['changed by others', 2_000];
    await view.look();
    assert.equal(view.known, 'as written', 'a pass that is under way has begun with it');
    assert.equal(await pass(), 'changed by others');
    assert.deepEqual([view.isFresh, view.readAt, reads], [true, 2_000, 2]);
  });

  const writings: Record<string, () => void | Promise<void>> = {
    'while it was read': () => {
      meanwhile = () => view.touch();
    },
    'after it was read': () => undefined,
  };
  for (const [when, prepare] of Object.entries(writings))
    it(`a look does not count when somebody wrote ${when}`, async () => {
      await pass();
      view.write('as written');
      kernel = 'half of it';
      await prepare();
      await view.look();
      if (when === 'after it was read') view.touch();
      assert.equal(await pass(), 'as written');
      assert.equal(await pass(), 'as written', 'nor later');
    });

  it('a look does not count while something is left to be removed', async () => {
    await pass();
    view.write('as written');
    kernel = 'with what is to be taken away';
    await view.look();
    assert.equal(await pass(false), 'as written');
  });

  it('the kernel is read by the next pass when distrusted or forgotten, whatever a look had', async () => {
    await pass();
    view.write('as written');
    await view.look();
    view.invalidate();
    kernel = 'changed by others';
    assert.equal(view.known, 'as written');
    assert.equal(await pass(), 'changed by others');
    view.write('as written');
    await view.look();
    view.forget();
    kernel = 'changed again';
    assert.equal(await pass(), 'changed again');
  });
});
