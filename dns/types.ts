// Owns the numbers of the protocol by their names, as dns2 has them.
// Must not hold anything that is Causeway's own.
import { Packet } from 'dns2';

/** Types of records and questions (RFC 1035 §3.2.2 and later). `EDNS` is the OPT pseudo-record of RFC 6891. */
export const { TYPE, CLASS, RCODE } = Packet;
