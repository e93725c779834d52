// Owns being a process that holds a lock until it is killed: node holder.ts ADDRESS PREFIX KEY.
// Must not end by itself.
import { openConsul } from '../../store/consul.ts';
import { consulPort } from '../lab/consul.ts';

const [host = '', prefix, key = ''] = process.argv.slice(2);
const store = openConsul({ addresses: [{ host, port: consulPort }], prefix });
await store.lock(key, 'held');
console.log('held');
