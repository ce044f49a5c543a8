/** The page: asks light.js what the form says, and shows the answer. */
import { Failure, openWorld } from './dist/light.js'

const element = (id) => document.getElementById(id)
const form = element('question')
const answer = element('answer')

function show (texts) {
  for (const [id, text] of Object.entries(texts)) element(id).textContent = text
}

function ageText (ms) {
  const seconds = Math.round(ms / 1000)
  return seconds < 0 ? `${-seconds} s ahead of this clock` : `${seconds} s`
}

/** What the peer says is text for this page, never markup. */
async function ask (worldId, address, agentId) {
  const world = await openWorld(worldId, address)
  try {
    const head = await world.head()
    const agent = await world.agent(agentId)
    const { x_cm: x, y_cm: y, z_cm: z } = agent.position ?? {}
    show({
      name: head.name, height: head.height, block: head.blockHash, age: ageText(head.ageMs), trust: head.trust,
      position: agent.exists ? `x ${x} cm, y ${y} cm, z ${z} cm` : 'proved absent: there is no such agent',
      owner: agent.owner ?? '', 'proved-height': agent.head.height, 'proved-age': ageText(agent.head.ageMs)
    })
  } finally {
    await world.close()
  }
}

form.addEventListener('submit', async (event) => {
  event.preventDefault()
  const [worldId, address, agentId] = ['world', 'address', 'agent'].map((id) => element(id).value.trim())
  const button = form.querySelector('button')
  button.disabled = true
  answer.dataset.state = 'asking'
  delete answer.dataset.kind
  try {
    await ask(worldId, address, agentId)
    answer.dataset.state = 'proved'
  } catch (error) {
    answer.dataset.kind = error instanceof Failure ? error.kind : 'fault'
    show({ failure: `${answer.dataset.kind}: ${error.message}` })
    answer.dataset.state = 'failed'
  } finally {
    button.disabled = false
  }
})
