// Owns a name server that stands for the world outside: it knows every name below `example`, by UDP and TCP.
// Must not know Causeway.
//
//   upstream-program.ts ADDRESS        until SIGTERM; prints a line when it listens
import Dns, { Packet } from 'dns2';

const [address = ''] = process.argv.slice(2);

const server = Dns.createServer({
  udp: true,
  tcp: true,
  handle: (request, send) => {
    const response = Packet.createResponseFromRequest(request);
    const [question] = request.questions;
    if (question?.name.endsWith('.example') !== true) response.header.rcode = Packet.RCODE.NXDOMAIN;
    else if (question.type === Packet.TYPE.A)
      response.answers.push(Packet.createResourceFromQuestion(question, { ttl: 60, address: '192.0.2.80' }));
    void send(response);
  },
});
await server.listen({ udp: { port: 53, address }, tcp: { port: 53, address } });
console.log('listening');
