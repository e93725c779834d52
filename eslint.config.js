// Owns the lint rules, among them the ones that encode the architecture (docs/architecture.md).
// Rooms import in one direction only: delta ◄ store ◄ ipam, net ◄ lb, swarm, dns, peers, health ◄ plugin. Tests may import everything.
import tseslint from 'typescript-eslint';

/** Which other rooms each room may import from. A room that is not named here may import from every room. */
const mayImport = {
  delta: [],
  store: ['delta'],
  net: ['delta'],
  ipam: ['store'],
  lb: ['delta', 'net', 'store'],
  swarm: ['store'],
  dns: ['delta', 'store'],
  peers: [],
  health: [],
  plugin: ['delta', 'store', 'net', 'ipam', 'lb', 'swarm', 'dns', 'peers', 'health'],
  rootfs: [],
};
const rooms = Object.keys(mayImport);

const boundaries = rooms.map((room) => ({
  files: [`${room}/**/*.ts`],
  rules: {
    'no-restricted-imports': [
      'error',
      {
        patterns: [
          ...rooms
            .concat('test', 'bench')
            .filter((other) => other !== room && !mayImport[room].includes(other))
            .map((other) => ({
              group: [`**/${other}/**`],
              message: `${room}/ must not know ${other}/: see docs/architecture.md for the direction of imports.`,
            })),
          ...(room === 'net' || room === 'rootfs'
            ? []
            : [
                {
                  group: ['execa', 'node:child_process', 'child_process'],
                  message: 'net/run.ts is the only place of the plugin that starts a process.',
                },
              ]),
        ],
      },
    ],
  },
}));

export default tseslint.config(
  { ignores: ['build/', 'node_modules/'] },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowBoolean: true },
      ],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      '@typescript-eslint/no-unnecessary-condition': [
        'error',
        { allowConstantLoopConditions: 'only-allowed-literals' },
      ],
      '@typescript-eslint/consistent-type-imports': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      'no-console': 'error',
      eqeqeq: 'error',
    },
  },
  {
    files: ['test/**/*.ts', 'bench/**/*.ts', 'rootfs/**/*.ts'],
    rules: { 'no-console': 'off', '@typescript-eslint/no-non-null-assertion': 'off' },
  },
  { files: ['**/*.js'], ...tseslint.configs.disableTypeChecked },
  ...boundaries,
);
