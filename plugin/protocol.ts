// Owns the shape of Docker's plugin calls: the only file that knows Docker's casing.
// Must not act on them. Source: libnetwork's drivers/remote/api and ipams/remote/api, Docker 20.10 to 29.
import * as z from 'zod';

const Id = z.string().min(1);

/** Go writes an empty map or list as null. */
const Options = z
  .record(z.string(), z.unknown())
  .nullish()
  .transform((options) => options ?? {});
const TextOptions = z
  .record(z.string(), z.string())
  .nullish()
  .transform((options) => options ?? {});

const IpamData = z.object({
  AddressSpace: z.string().default(''),
  /** CIDR. */
  Pool: z.string(),
  /** Address with prefix; '' or absent where GwAllocCheck said that none is needed. */
  Gateway: z.string().default(''),
});
const IpamDataList = z
  .array(IpamData)
  .nullish()
  .transform((list) => list ?? []);

export const AllocateNetwork = z.object({
  NetworkID: Id,
  Options: TextOptions,
  IPv4Data: IpamDataList,
  IPv6Data: IpamDataList,
});
export const CreateNetwork = z.object({
  NetworkID: Id,
  Options,
  IPv4Data: IpamDataList,
  IPv6Data: IpamDataList,
});
export const NetworkOnly = z.object({ NetworkID: Id });
export const CreateEndpoint = z.object({
  NetworkID: Id,
  EndpointID: Id,
  Interface: z
    .object({
      Address: z.string().default(''),
      AddressIPv6: z.string().default(''),
      MacAddress: z.string().default(''),
    })
    .nullish(),
  Options,
});
export const EndpointOnly = z.object({ NetworkID: Id, EndpointID: Id });
export const Join = z.object({ NetworkID: Id, EndpointID: Id, SandboxKey: z.string(), Options });
export const Discovery = z.object({ DiscoveryType: z.number(), DiscoveryData: z.unknown() });
export const GwAllocCheck = z.object({ Options });

export const RequestPool = z.object({
  AddressSpace: z.string(),
  Pool: z.string().default(''),
  SubPool: z.string().default(''),
  Options: TextOptions,
  V6: z.boolean().default(false),
});
// On some error paths Swarm has no pool id any more and releases the empty one: see ipam/.
export const ReleasePool = z.object({ PoolID: z.string() });
export const RequestAddress = z.object({ PoolID: Id, Address: z.string().default(''), Options: TextOptions });
export const ReleaseAddress = z.object({ PoolID: z.string(), Address: z.string() });

const Port = z.number().int().min(0).max(65_535);

/** A port to be published on the node: libnetwork/types.PortBinding. */
export const PortBinding = z.object({
  /** Of IP: 6, 17, 132. */
  Proto: z.number().int(),
  /** The container's. */
  Port,
  /** '' for all. */
  HostIP: z.string().default(''),
  /** 0: to be chosen. */
  HostPort: Port.default(0),
  /** Of a range to choose from; 0 or HostPort for none. */
  HostPortEnd: Port.default(0),
});
export type PortBinding = z.infer<typeof PortBinding>;

/** Keys of options, as Docker names them (libnetwork/netlabel). */
export const label = {
  generic: 'com.docker.network.generic',
  internal: 'com.docker.network.internal',
  enableIPv4: 'com.docker.network.enable_ipv4',
  enableIPv6: 'com.docker.network.enable_ipv6',
  mtu: 'com.docker.network.driver.mtu',
  portMap: 'com.docker.network.portmap',
} as const;

export const ProgramExternalConnectivity = z.object({
  NetworkID: Id,
  EndpointID: Id,
  Options: z
    .object({ [label.portMap]: z.array(PortBinding).nullish() })
    .nullish()
    .transform((options) => options?.[label.portMap] ?? []),
});
