// Runs an unmodified suite: where its tests import the sources beside them, they get the published package instead.
const packageUnderTest = process.env.CLOCHE_SUITE_PACKAGE;
const root = process.env.CLOCHE_SUITE_ROOT;

const published = {
  find: /^(?:\.\.\/)+src(?:\/(?:index|errors|sandbox\/filesystem|sandbox\/commands)(?:\.js)?)?$/,
  replacement: packageUnderTest,
};
// The suite of the command line runs the published program and imports but its own sources' types.
const ownSources = { find: /^src(?=\/|$)/, replacement: `${root}/src` };

export default {
  root,
  resolve: { alias: [packageUnderTest ? published : ownSources] },
  test: {
    include: JSON.parse(process.env.CLOCHE_SUITE_INCLUDE),
    exclude: JSON.parse(process.env.CLOCHE_SUITE_EXCLUDE),
    environment: "node",
    // What the suites' own configurations say; builds of templates may take longer.
    testTimeout: 30_000,
    hookTimeout: 30_000,
    maxWorkers: 2,
    reporters: ["junit"],
    outputFile: process.env.CLOCHE_SUITE_REPORT,
  },
};
