/** Serves the page on loopback: `npm start [-- PORT]`. Modules cannot be loaded from a file. */
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { dirname, join } from 'node:path'
import { argv } from 'node:process'
import { fileURLToPath } from 'node:url'

const here = dirname(fileURLToPath(import.meta.url))
/** All that is served. */
const FILES = {
  '/': ['index.html', 'text/html; charset=utf-8'],
  '/page.css': ['page.css', 'text/css; charset=utf-8'],
  '/page.js': ['page.js', 'text/javascript; charset=utf-8'],
  '/dist/light.js': ['dist/light.js', 'text/javascript; charset=utf-8']
}

/** @param {number} port 0 for any that is free @returns {Promise<{url: string, close: () => void}>} */
export async function serve (port = 0) {
  const server = createServer(async (request, response) => {
    try {
      const [file, type] = FILES[request.url]
      response.writeHead(200, { 'content-type': type, 'cache-control': 'no-store' }).end(await readFile(join(here, file)))
    } catch {
      response.writeHead(404).end()
    }
  })
  await new Promise((resolve, reject) => server.once('error', reject).listen(port, '127.0.0.1', resolve))
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() }
}

if (argv[1] === fileURLToPath(import.meta.url)) console.log((await serve(Number(argv[2] ?? 8080))).url)
