// Owns how much longer than on a plain machine everything may take here.

/** 1 on a plain machine; more on an emulated processor, which is given more time for everything. */
export const slowness = Number(process.env['CAUSEWAY_TEST_SLOWNESS'] ?? 1);
