/** Asks for a token where the service wants one. */

import { byId } from "./dom.js";
import { session } from "./session.js";

const ASCII = /^[\x21-\x7e]+$/;

/** @param {() => void} onToken Called with a token in the session. */
export function bindDoor(onToken) {
  byId("door-form").onsubmit = (event) => {
    event.preventDefault();
    const token = byId("token").value.trim();
    if (!ASCII.test(token)) {
      byId("door-error").textContent = "A token is one word of letters, digits and signs.";
      return;
    }
    session.token = token;
    onToken();
  };
}

/** What stands on the page stays there, out of sight. */
export function openDoor() {
  byId("door-error").textContent = session.token ? "The service does not know this token." : "";
  session.token = "";
  byId("work").hidden = true;
  byId("sign-out").hidden = true;
  byId("door").hidden = false;
  byId("token").select();
}

export function closeDoor() {
  byId("token").value = "";
  byId("door").hidden = true;
  byId("work").hidden = false;
  byId("sign-out").hidden = !session.token;
}
