/** Bundles light.js for browsers: dist/light.js, an ES module that imports nothing. */
import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

const here = dirname(fileURLToPath(import.meta.url))
const lib = join(here, '../lib')
const outfile = join(here, 'dist/light.js')

/** Packages that ../lib imports are taken from here too: one copy of each, and ../node_modules need not be there. */
const packagesFromHere = {
  name: 'packages-from-here',
  setup ({ onResolve, resolve }) {
    onResolve({ filter: /^[@a-z]/ }, ({ path, kind, importer }) =>
      dirname(importer) === lib ? resolve(path, { kind, resolveDir: here }) : undefined)
  }
}

await build({
  entryPoints: [join(here, 'light.js')],
  outfile,
  bundle: true,
  minify: true,
  format: 'esm',
  platform: 'browser', // an import of a module of Node fails
  target: 'es2022',
  // Libraries look whether they run in Node; in a browser the answer is known.
  define: { 'globalThis.Buffer': 'undefined', 'globalThis.process': 'undefined' },
  plugins: [packagesFromHere]
})
const bundle = await readFile(outfile)
const [global] = /(?<![.\w$])(Buffer|process)\s*[.[]|(?<![.\w$])require\s*\(/.exec(bundle) ?? []
if (global !== undefined) {
  console.error(`error: dist/light.js uses what only Node has: ${global}`)
  process.exit(1)
}
console.log(`dist/light.js: ${bundle.length} bytes, ${gzipSync(bundle).length} compressed`)
