/** The page: what is asked, when, and where the answers go. Views do the rest. */

import * as api from "./api.js";
import { byId, el } from "./dom.js";
import { movesOf } from "./moves.js";
import { session } from "./session.js";
import { bindAdjust, currentTuning, isPinned, leaveOut, pin } from "./view-adjust.js";
import { bindAsk, sendForm, showCategories, showRecent } from "./view-ask.js";
import { bindSides, showCompared, showSides, sides } from "./view-compare.js";
import { bindDoor, closeDoor, openDoor } from "./view-door.js";
import { confirmForget } from "./view-forget.js";
import { showHistory } from "./view-history.js";
import { lengthInWords, movesInWords, showList } from "./view-list.js";
import { bindNotice, hideNotice, showNotice } from "./view-notice.js";
import { showRelease } from "./view-release.js";
import { rankRequest } from "./wanted.js";
import { basisInWords, nameOf } from "./words.js";

const SOON = 180; // milliseconds that a slider must rest
const BEGIN = "Name a user, or a wish in words, and choose “Show list”. Leave both empty for what is popular.";
const ALONE =
  "There is one release to ask. Put another signed one into the folder of releases that this service watches, then compare.";

/**
 * @typedef {{key: string, words: string}} Cause Of another list; those with one key count as one change.
 * @type {{shelf: object|null, asked: import("./wanted.js").Asked|null, items: object[]|null, before: object[]|null,
 *     cause: Cause|null, events: object[]|null}}
 */
const now = { shelf: null, asked: null, items: null, before: null, cause: null, events: null };
let turn = 0; // of the question whose answer counts
let timer = 0;

const isAlone = () => now.shelf.versions.length < 2;
const comparing = () => document.querySelector("input[name=mode]:checked").value === "compare";

// --- asking -----------------------------------------------------------------------------------------

/** Do something with the service; what goes wrong is one line. */
async function attempt(work) {
  try {
    await work();
    hideNotice();
  } catch (error) {
    if (!(error instanceof api.ServiceError)) throw error;
    if (error.status === 401) openDoor();
    else showNotice(error.message, () => attempt(work));
  }
}

async function begin() {
  await attempt(async () => {
    takeShelf(await api.releases());
    showCategories(await api.categories());
    closeDoor();
    if (now.asked) await Promise.all([readHistory(), readLists(null)]);
    else byId("user").focus();
  });
}

function takeShelf(shelf) {
  now.shelf = shelf;
  showRelease(shelf);
  showSides(shelf);
}

/** Ask again with what was asked last, and whatever the sliders say. @param {Cause|null} cause */
function again(cause, soon = false) {
  clearTimeout(timer);
  if (!now.asked || (comparing() && isAlone())) return;
  if (soon) timer = setTimeout(() => again(cause), SOON);
  else attempt(() => readLists(cause));
}

/** Lists for what is asked; answers that were overtaken are let go. */
async function readLists(cause) {
  const mine = ++turn;
  const [left, right] = sides();
  byId("results").ariaBusy = "true";
  try {
    if (comparing()) {
      const requests = [left, right].map((version) => rankRequest(now.asked, currentTuning(), version));
      const answers = await api.rankBatch(requests);
      if (mine === turn) takeCompared(answers);
    } else {
      const answer = await api.rank(rankRequest(now.asked, currentTuning()));
      if (mine === turn) takeList(answer, cause);
    }
  } catch (error) {
    if (mine === turn) throw error;
  } finally {
    if (mine === turn) byId("results").ariaBusy = "false";
  }
}

async function readHistory() {
  const { user } = now.asked;
  const events = user ? await api.history(user) : null;
  if (user !== now.asked.user) return;
  now.events = events;
  showHistory(user, events);
}

// --- answers ----------------------------------------------------------------------------------------

function takeList(answer, cause) {
  if (!cause) now.before = null;
  else if (cause.key !== now.cause?.key) now.before = now.items;
  now.cause = cause;
  now.items = answer.items;
  const moves = now.before ? movesOf(now.before, answer.items) : null;
  const { user } = now.asked;
  const since = moves ? ` · ${movesInWords(moves)} since ${cause.words}` : "";
  const made = `${lengthInWords(answer.items)} ${basisInWords(answer.basis, user)} · release ${answer.release}`;
  byId("status").textContent = made + since;
  byId("results-title").textContent = user ? `List for ${user}` : "List";
  if (answer.items.length) showList(byId("lists"), answer.items, moves, actions(user));
  else showEmpty("No item is left. Choose more categories, or take back what was left out.");
  if (answer.release !== now.shelf.served.version) attempt(async () => takeShelf(await api.releases()));
}

function takeCompared(answers) {
  const agreement = showCompared(byId("lists"), answers);
  byId("status").textContent = `${agreement} · release ${sides().join(" and release ")}`;
  byId("results-title").textContent = now.asked.user ? `Lists for ${now.asked.user}` : "Lists";
}

function showEmpty(text) {
  byId("lists").replaceChildren(el("p", { className: "empty" }, text));
}

function actions(user) {
  const rules = [
    { name: "pin", words: (item) => (isPinned(item) ? "Unpin" : "Pin"), act: pin },
    { name: "out", words: () => "Leave out", act: leaveOut },
  ];
  if (!user) return rules;
  return [
    { name: "view", words: () => "Viewed", act: (item) => report(user, item, "view") },
    { name: "purchase", words: () => "Bought", act: (item) => report(user, item, "purchase") },
    ...rules,
  ];
}

// --- what people do ---------------------------------------------------------------------------------

function ask(asked) {
  if (asked.user !== now.asked?.user) now.events = null;
  now.asked = asked;
  now.items = null; // what moves is told within one question
  if (asked.user) session.remember(asked.user);
  showRecent();
  clearTimeout(timer);
  if (comparing() && isAlone()) attempt(readHistory);
  else attempt(() => Promise.all([readHistory(), readLists(null)]));
}

/** The user did something with an item: the next list knows it. */
function report(user, item, kind) {
  const words = `${nameOf(item)} was ${kind === "view" ? "viewed" : "bought"}`;
  attempt(async () => {
    await api.tell(user, item.item_id, kind);
    if (user !== now.asked.user) return;
    await Promise.all([readHistory(), readLists({ key: `${kind} ${item.item_id} ${turn}`, words })]);
  });
}

async function forget() {
  const { user } = now.asked;
  if (!(await confirmForget(user, now.events?.length ?? 0))) return;
  attempt(async () => {
    const erased = await api.forget(user);
    session.drop(user);
    showRecent();
    if (user !== now.asked.user) return;
    await Promise.all([readHistory(), readLists({ key: `forget ${turn}`, words: `${erased} events were erased` })]);
  });
}

function chooseMode() {
  turn += 1; // what was asked for the other view is of no use now
  byId("results").ariaBusy = "false";
  byId("status").textContent = "";
  byId("sides").hidden = !comparing() || isAlone();
  if (comparing() && isAlone()) showEmpty(ALONE);
  else if (now.asked) again(null);
  else showEmpty(BEGIN);
}

function signOut() {
  session.end();
  location.reload();
}

bindNotice();
bindDoor(begin);
bindAsk(ask, () => now.asked && sendForm());
bindAdjust(again);
bindSides(() => again(null));
for (const radio of document.querySelectorAll("input[name=mode]")) radio.onchange = chooseMode;
byId("forget").onclick = forget;
byId("sign-out").onclick = signOut;
showEmpty(BEGIN);
showHistory("", null);
begin();
