/**
 * Follows the coordinator: asks for its status, and shows the page's parts anew where something changed.
 *
 * The server makes all HTML; here whole sections are put in the place of older ones, so that what a reader of the
 * page holds (focus, scroll, an open table) stays where nothing is new.
 */

const EVERY_MS = 5000;
let known = "";

/** What a status says, without the times that change by themselves. */
function essence(status) {
  const { time, coordinator, ...rest } = status;
  return JSON.stringify([{ ...coordinator, heard: 0 }, rest]);
}

async function text(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(String(response.status));
  return response.text();
}

/** Put the sections of a fresh page in the place of those that differ. */
async function renew() {
  const fresh = new DOMParser().parseFromString(await text("/"), "text/html");
  for (const section of fresh.querySelectorAll("main > section")) {
    const old = document.getElementById(section.id);
    if (old.innerHTML !== section.innerHTML) old.replaceChildren(...document.importNode(section, true).childNodes);
  }
}

/** @param {string} words @param {boolean} lost */
function say(words, lost) {
  const line = document.getElementById("fresh");
  line.classList.toggle("bad", lost);
  line.textContent = words;
}

const clock = (seconds) => `${new Date(1000 * seconds).toISOString().slice(0, 19).replace("T", " ")} UTC`;

async function follow() {
  try {
    const status = JSON.parse(await text("/status.json"));
    const now = essence(status);
    if (known && now !== known) await renew();
    known = now;
    say(`As of ${clock(status.time)}`, false);
  } catch {
    say("The coordinator's page does not answer: what is shown is old.", true);
  }
  setTimeout(follow, EVERY_MS);
}

follow();
