// Owns the tests of how published ports are written into records.
// Must not test how they are balanced.
import assert from 'node:assert/strict';
import { openEmbedded } from '../../../store/embedded.ts';
import { foldPorts, unfoldPorts } from '../../../store/port-ranges.ts';
import { openRecords, type ServiceRecord } from '../../../store/records.ts';

const row = (first: number, count: number, shift = 0) =>
  Array.from({ length: count }, (_, at) => ({
    protocol: 'udp' as const,
    port: first + at,
    targetPort: first + at + shift,
  }));

describe('ports in records', () => {
  it('few ports are written one by one, as earlier versions read them', () => {
    for (const ports of [[], row(80, 1), row(8000, 63)]) assert.deepEqual(foldPorts(ports), ports);
  });

  it('long ranges of ports are written as ranges, also with other ports on the container', () => {
    for (const shift of [0, -9000])
      assert.deepEqual(foldPorts(row(10_000, 7_501, shift)), [
        { protocol: 'udp', port: 10_000, targetPort: 10_000 + shift, count: 7_501 },
      ]);
  });

  for (const [what, ports] of Object.entries({
    'of a gap': [...row(100, 70), ...row(171, 70)],
    'of another protocol': [
      ...row(100, 70),
      ...row(170, 70).map((port) => ({ ...port, protocol: 'tcp' as const })),
    ],
    'of another address': [
      ...row(100, 70),
      ...row(170, 70).map((port) => ({ ...port, address: '192.0.2.1' })),
    ],
    'of another shift': [...row(100, 70), ...row(170, 70, 1)],
    'of a name': [...row(100, 70), { ...row(170, 1)[0]!, name: 'sip' }, ...row(171, 70)],
  }))
    it(`ports are written apart because ${what}, and read back as they were`, () => {
      const stored = foldPorts(ports);
      assert.ok(stored.length >= 2 && stored.length <= 3, String(stored.length));
      assert.deepEqual(unfoldPorts(stored), ports);
    });

  it('any number of ports fits into a record, and each is read back', async () => {
    const store = openEmbedded(':memory:');
    const { services } = openRecords(store);
    const ports = row(1, 65_535);
    const record: ServiceRecord = { v: 1, id: 'pbx', name: 'pbx', vips: {}, networks: [], ports, tasks: [] };
    await services.put('pbx', record);
    assert.deepEqual((await services.get('pbx'))?.value, record);
    assert.ok(JSON.stringify((await store.get('services/pbx'))?.value).length < 200);
    await store.close();
  });
});
