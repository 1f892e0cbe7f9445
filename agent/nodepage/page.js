"use strict";
// Asks for what has changed and puts it in place of what was there, element by element, so that focus, selection and
// scrolling stay. All markup is the server's.
(() => {
	const every = 2000, slowest = 30000, patience = 8000; // milliseconds
	const root = document.documentElement;
	const live = document.getElementById("live");
	const filter = document.getElementById("filter");
	const sections = [...document.querySelectorAll("[data-section]")];
	let timer, asking, failures = 0;

	async function ask() {
		clearTimeout(timer);
		asking?.abort();
		const own = asking = new AbortController();
		const late = setTimeout(() => own.abort(new Error("no answer")), patience);
		try {
			const query = new URLSearchParams({filter: filter.value.trim()});
			for (const s of sections) query.set(s.dataset.section, s.dataset.tag);
			const response = await fetch("sections?" + query, {signal: own.signal, cache: "no-store"});
			if (!response.ok) throw new Error((await response.text()).slice(0, 200));
			const answer = await response.json();
			if (answer.build !== root.dataset.build) return location.reload();
			answer.sections.forEach(put);
			failures = 0;
			say("live", "Live");
		} catch (err) {
			if (asking !== own) return; // another has taken its place
			failures++;
			say("lost", "Not live: " + err.message);
		} finally {
			clearTimeout(late);
			if (asking === own && !document.hidden) timer = setTimeout(ask, pause());
		}
	}

	// Pages that were turned away together shall not come back together.
	const pause = () => failures === 0 ? every : Math.min(slowest, every * 2 ** failures) * (0.5 + Math.random() / 2);

	function say(state, text) {
		root.classList.toggle("live", true);
		live.classList.toggle("lost", state === "lost");
		if (live.textContent !== text) live.textContent = text;
	}

	function put({name, tag, html}) {
		const section = sections.find((s) => s.dataset.section === name);
		if (!section) return;
		const fresh = document.createElement("template");
		fresh.innerHTML = html;
		adapt(section, fresh.content);
		section.dataset.tag = tag;
	}

	// adapt makes the children of old those of fresh. Those with the same key are the same.
	function adapt(old, fresh) {
		const keyed = new Map();
		for (const c of old.children) if (c.dataset.key !== undefined) keyed.set(c.dataset.key, c);
		let at = old.firstChild;
		for (const next of [...fresh.childNodes]) {
			const key = next.dataset?.key;
			let same = null;
			if (key !== undefined) {
				same = keyed.get(key) ?? null;
				keyed.delete(key);
			} else if (at && at.nodeName === next.nodeName && at.dataset?.key === undefined) {
				same = at;
			}
			if (!same) {
				old.insertBefore(next, at);
				continue;
			}
			if (same === at) at = at.nextSibling;
			else old.insertBefore(same, at);
			if (same.nodeType !== Node.ELEMENT_NODE) {
				if (same.data !== next.data) same.data = next.data;
				continue;
			}
			for (const {name} of [...same.attributes]) if (!next.hasAttribute(name)) same.removeAttribute(name);
			for (const {name, value} of next.attributes) if (same.getAttribute(name) !== value) same.setAttribute(name, value);
			adapt(same, next);
		}
		while (at) {
			const gone = at;
			at = at.nextSibling;
			gone.remove();
		}
	}

	let typing;
	filter.addEventListener("input", () => {
		clearTimeout(typing);
		typing = setTimeout(() => {
			const query = filter.value.trim() ? "?" + new URLSearchParams({filter: filter.value.trim()}) : location.pathname;
			history.replaceState(null, "", query + location.hash);
			ask();
		}, 200);
	});
	filter.form.addEventListener("submit", (event) => { event.preventDefault(); ask(); });
	document.addEventListener("visibilitychange", () => {
		clearTimeout(timer);
		if (!document.hidden) ask();
	});
	ask();
})();
