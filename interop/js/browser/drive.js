/**
 * A person at the page, for a test: `node drive.js CHROMIUM` opens it in a headless browser. Each line of stdin, {world, address, agent},
 * goes into its form; each line of stdout is what the page then showed, with its own errors. The first line says which browser it is.
 */
import { argv, stdin, stdout } from 'node:process'
import { createInterface } from 'node:readline'
import puppeteer from 'puppeteer-core'
import { serve } from './serve.js'

const ANSWER_MS = 40_000 // a dial and two questions, each until its deadline

async function ask (page, question) {
  for (const [id, value] of Object.entries(question)) await page.$eval(`#${id}`, (input, text) => { input.value = text }, value)
  await page.click('button')
  await page.waitForSelector('#answer:is([data-state=proved], [data-state=failed])', { timeout: ANSWER_MS })
  return await page.$eval('#answer', (answer) => {
    // What cannot be seen is not shown, whatever the document holds.
    const seen = ({ id, offsetParent, innerText }) => [id, offsetParent ? innerText : '']
    return { ...answer.dataset, ...Object.fromEntries([...answer.querySelectorAll('[id]')].map(seen)) }
  })
}

const say = (value) => stdout.write(JSON.stringify(value) + '\n')
const site = await serve()
// By a pipe, so that the browser ends with this process, however that ends. The sandbox does not start for root, and the page is our own.
const browser = await puppeteer.launch({
  executablePath: argv[2], pipe: true, args: ['--headless=new', '--no-sandbox', '--disable-dev-shm-usage']
})
try {
  const page = await browser.newPage()
  const errors = []
  page.on('pageerror', (error) => errors.push(String(error)))
  page.on('requestfailed', (request) => errors.push(`${request.url()}: ${request.failure()?.errorText}`))
  page.on('console', (message) => console.error(`page: ${message.type()}: ${message.text()}`))
  await page.goto(site.url)
  say({ browser: await browser.version() })
  for await (const line of createInterface({ input: stdin })) say({ ...await ask(page, JSON.parse(line)), errors: errors.splice(0) })
} finally {
  await browser.close()
  site.close()
}
