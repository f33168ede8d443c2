"use strict";
// Asks for the page again and again, and swaps in what has changed. One question at a time; none while
// nobody looks.
const EVERY = 2000, PATIENCE = 5000;

async function refresh() {
  const answer = await fetch(location.pathname, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (!answer.ok) throw new Error(answer.statusText);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const shown = document.getElementById(part.id);
    if (shown && shown.innerHTML !== part.innerHTML) shown.replaceChildren(...part.childNodes);
  }
}

async function keepUp() {
  if (!document.hidden) {
    let isLost = false;
    try { await refresh(); } catch { isLost = true; }
    document.getElementById("lost").hidden = !isLost;
  }
  setTimeout(keepUp, EVERY);
}

setTimeout(keepUp, EVERY);
