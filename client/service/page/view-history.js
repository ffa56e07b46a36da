/** What is held of a user, the newest first. */

import { byId, count, el } from "./dom.js";
import { done, moment, nameOf } from "./words.js";

const AT_FIRST = 25;

/** @param {string} user @param {object[]|null} events Null for no user. */
export function showHistory(user, events) {
  byId("history-title").textContent = user ? `History of ${user}` : "History";
  byId("forget").hidden = !user;
  if (!user) say("Name a user to see what this service holds of them.");
  else if (!events.length) say("Nothing is held of this user yet. “Viewed” or “Bought” beside an item begins a history.");
  else show(events, AT_FIRST);
}

const say = (text) => byId("events").replaceChildren(el("p", { className: "empty" }, text));

function show(events, most) {
  const list = el("ol", { className: "events" }, ...events.slice(0, most).map(line));
  byId("events").replaceChildren(el("p", { className: "hint" }, `${count(events.length, "event")}, the newest first.`), list);
  if (events.length > most) {
    const all = () => show(events, events.length);
    byId("events").append(el("button", { type: "button", onclick: all }, `Show all ${events.length}`));
  }
}

function line(event) {
  const when = el("time", { dateTime: new Date(1000 * event.timestamp).toISOString() }, moment(event.timestamp));
  const rated = event.rating === null ? "" : ` · rated ${event.rating}`;
  return el(
    "li",
    {},
    el("p", { className: "hint" }, el("b", { className: "kind" }, done(event.kind)), rated, " · ", when),
    el("p", {}, nameOf(event)),
    event.review ? el("blockquote", {}, event.review) : null,
  );
}
