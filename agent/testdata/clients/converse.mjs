// Has Converse in a Chromium without a screen talk to a lamp, by its own
// buttons and fields, and keeps a picture of each step.
//
// usage: node converse.mjs PAGE JID PASSWORD CONTACT PICTURES
import puppeteer from 'puppeteer-core'

const [page_url, jid, password, contact, pictures] = process.argv.slice(2)

const browser = await puppeteer.launch({
	executablePath: '/usr/bin/chromium',
	// Chromium has no sandbox for root, and /dev/shm is small in containers.
	// Converse's sponsors, whose pictures it loads, need not hear of a test.
	args: ['--disable-dev-shm-usage', '--disable-gpu', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1', ...(process.getuid() === 0 ? ['--no-sandbox'] : [])],
	defaultViewport: { width: 1000, height: 760 },
})
const page = await browser.newPage()
page.setDefaultTimeout(30_000)
page.on('pageerror', e => console.log('page error:', e.message))

let step = 0
async function picture(name) {
	await page.evaluate(() => Promise.all(document.getAnimations().map(a => a.finished.catch(() => {}))))
	await page.screenshot({ path: `${pictures}/converse-${++step}-${name}.png` })
}

const press = selector => page.locator(selector).click()
const fill = (selector, text) => page.locator(selector).fill(text)

// shown waits until one of the elements holds the text, and returns all of it.
async function shown(selector, part) {
	const text = await page.waitForFunction((selector, part) =>
		[...document.querySelectorAll(selector)].map(e => e.innerText.trim()).find(t => t.includes(part)), {}, selector, part)
	return text.jsonValue()
}

const lamp = `converse-roster a.open-chat[data-jid="${contact}"]`
const messages = 'converse-chat-message .chat-msg__text'

async function say(line) {
	await fill('textarea.chat-textarea', line)
	await page.focus('textarea.chat-textarea')
	await page.keyboard.press('Enter')
}

try {
	await page.goto(page_url)
	await fill('#converse-login-jid', jid)
	await fill('#converse-login-password', password)
	await picture('login')
	await press('#converse-login [type=submit]')

	await press('converse-roster .dropdown-toggle')
	await press('converse-roster a.add-contact')
	await fill('form.add-xmpp-contact input[name=jid]', contact)
	await press('form.add-xmpp-contact [type=submit]')
	console.log('contact:', await shown(`${lamp} .contact-name--online`, 'Hall'), 'online')
	await picture('contact')

	await press(lamp)
	await say('help')
	console.log('help:', await shown(messages, 'set dimmer'))
	await say('on')
	console.log('on:', await shown(messages, 'confirmed after'))
	await picture('chat')

	await press('a.show-client-info')
	await press('#commands-tab')
	await fill('converse-adhoc-commands input[name=jid]', contact)
	await press('converse-adhoc-commands [type=submit]')
	await page.waitForSelector('a[data-command-node=set]')
	console.log('commands:', (await page.$$eval('a[data-command-node]', all => all.map(a => a.dataset.commandNode))).join(' '))
	await press('a[data-command-node=set]')
	await page.waitForSelector('converse-adhoc-commands [name=dimmer]')
	console.log('form:', (await page.$$eval('converse-adhoc-commands li [name]', all => all.map(e => e.name))).join(' '))
	await fill('converse-adhoc-commands [name=dimmer]', '65')
	await picture('form')
	await press('converse-adhoc-commands [data-action=complete]')
	console.log('note:', await shown('converse-adhoc-commands > .form-help', 'confirmed after'))
	await page.$eval('converse-adhoc-commands > .alert', e => e.scrollIntoView())
	await picture('outcome')
	console.log('end')
} catch (e) {
	console.log('fault:', e.message)
	await page.screenshot({ path: `${pictures}/converse-fault.png` })
}
await browser.close()
