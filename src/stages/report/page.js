// Shows the images of a report. All it knows stands in the script elements before it; text from data becomes text in the page, never markup.
(() => {
  const parse = id => JSON.parse(document.getElementById(id).textContent);
  const facts = parse('facts');
  const images = parse('images');
  images.forEach((image, place) => { image.place = place; });

  // What stands where in a caption's list; null or nothing where it is not known.
  const [TEXT, LOGPROB, TOKENS, FINISH, LENGTH, REPETITION, CIDER, ROUGE] = [0, 1, 2, 3, 4, 5, 6, 7];
  const CLIP = 8;
  const LETTERS = facts.letters;
  const SEVERAL = facts.tables.length > 1;
  // Cards made at a time, and captions or references of a card that are not folded away.
  const BATCH = 48;
  const UNFOLDED = 5;

  // ---- elements

  function element(name, properties = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in node) node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children.filter(child => child !== null && child !== undefined && child !== ''));
    return node;
  }

  const fixed = (number, digits) => number.toFixed(digits).replace('-', '\u2212');
  const count = number => number.toLocaleString('en');
  const percent = share => `${Math.round(share * 100)}%`;
  const known = value => value !== null && value !== undefined;
  const HAN = /\p{Script=Han}/u;

  // Text with the words of the search marked.
  function marked(text) {
    const lower = text.toLowerCase();
    const words = state.q.toLowerCase().split(/\s+/).filter(word => word !== '');
    if (words.length === 0 || lower.length !== text.length) return [text];
    const parts = [];
    for (let from = 0; from < text.length;) {
      const found = words.map(word => [lower.indexOf(word, from), word.length]).filter(([at]) => at >= 0);
      if (found.length === 0) {
        parts.push(text.slice(from));
        break;
      }
      const [at, length] = found.reduce((best, next) => (next[0] < best[0] ? next : best));
      parts.push(text.slice(from, at), element('mark', {}, text.slice(at, at + length)));
      from = at + length;
    }
    return parts;
  }

  // ---- what an image has

  const captions = image => image.tables.flat();
  const first = (image, table, field) => image.tables[table]?.[0]?.[field] ?? null;
  const repetition = image => Math.max(0, ...captions(image).map(caption => caption[REPETITION] ?? 0));
  // CIDEr of a later table's first caption against the first table's.
  const difference = (image, table) => {
    const [a, b] = [first(image, 0, CIDER), first(image, table, CIDER)];
    return known(a) && known(b) ? b - a : null;
  };
  // The table whose first caption has the best score; none where two share it.
  function best(image) {
    const scores = image.tables.map((_, table) => first(image, table, CIDER));
    if (!SEVERAL || !scores.every(known)) return -1;
    const top = Math.max(...scores);
    return scores.indexOf(top) === scores.lastIndexOf(top) ? scores.indexOf(top) : -1;
  }
  const perToken = (image, table) => {
    const [logprob, tokens] = [first(image, table, LOGPROB), first(image, table, TOKENS)];
    return known(logprob) && tokens > 0 ? logprob / tokens : null;
  };

  function haystack(image) {
    image.haystack ??= [image.path, image.id ?? '', ...captions(image).map(c => c[TEXT]), ...(image.references ?? [])].join('\n').toLowerCase();
    return image.haystack;
  }

  // Pictures are lines of the script elements with that class, in the order of the images.
  const sheets = [...document.querySelectorAll('script.pictures')];
  const lines = [];
  function picture(image) {
    const sheet = Math.floor(image.place / facts.pictures_at_once);
    lines[sheet] ??= sheets[sheet].textContent.split('\n');
    return lines[sheet][image.place % facts.pictures_at_once];
  }

  const isEmpty = caption => caption[TEXT].trim() === '';
  const ends = (caption, reason) => facts.finish_reasons[caption[FINISH]] === reason;

  // How many images of the page have the same first caption, in the table where those are most.
  const alike = (() => {
    const counts = facts.tables.map((_, table) => {
      const of = new Map();
      for (const image of images) {
        const caption = first(image, table, TEXT);
        if (known(caption)) of.set(caption, (of.get(caption) ?? 0) + 1);
      }
      return of;
    });
    return image => Math.max(...counts.map((of, table) => of.get(first(image, table, TEXT)) ?? 0));
  })();

  // How bad an image's first captions are: empty ones before all, then loops, then by the lowest score there is.
  const SCORED = [CLIP, CIDER].find(field => images.some(image => image.tables.some((_, table) => known(first(image, table, field)))));
  const score = (image, table) => (SCORED ? first(image, table, SCORED) : perToken(image, table));
  function badness(image) {
    const firsts = image.tables.map(list_ => list_[0]).filter(known);
    if (firsts.some(isEmpty)) return 2e9;
    if (firsts.some(caption => ends(caption, 'loop'))) return 1e9;
    const scores = image.tables.map((_, table) => score(image, table)).filter(known);
    return scores.length > 0 ? -Math.min(...scores) : null;
  }

  // ---- orders: key, name, value; the greatest comes first, images without a value last

  const orders = [
    { key: 'worst', name: 'worst first', value: badness },
    { key: 'name', name: 'name', value: image => -image.place },
  ];
  facts.tables.forEach((_, table) => {
    const of = SEVERAL ? `${LETTERS[table]}: ` : '';
    const end = SEVERAL ? `-${LETTERS[table].toLowerCase()}` : '';
    const add = (key, name, value) => {
      if (images.some(image => known(value(image)))) orders.push({ key: key + end, name: of + name, value });
    };
    add('clip', 'CLIP score', image => first(image, table, CLIP));
    add('cider', 'CIDEr', image => first(image, table, CIDER));
    add('rouge', 'ROUGE-L', image => first(image, table, ROUGE));
    add('logprob', 'log-probability', image => first(image, table, LOGPROB));
    add('logprob-token', 'log-probability per token', image => perToken(image, table));
    add('length', `length in ${facts.unit}`, image => first(image, table, LENGTH));
  });
  if (facts.scored) {
    facts.tables.slice(1).forEach((_, at) => {
      const letter = LETTERS[at + 1];
      const key = at === 0 ? 'difference' : `difference-${letter.toLowerCase()}`;
      orders.push({ key, name: `CIDEr, ${letter} \u2212 A`, value: image => difference(image, at + 1) });
    });
  }
  orders.push({ key: 'repetition', name: 'repetition', value: repetition });

  // ---- the view, which the address keeps

  const repeating = images.filter(image => repetition(image) > 0).length;
  const views = [
    { key: 'images', name: 'Images', size: images.length },
    { key: 'repetitions', name: 'Repetitions', size: repeating },
    { key: 'failures', name: 'Failures', size: facts.num_failures },
  ];
  const DEFAULT_VIEW = facts.worst && repeating > 0 ? 'repetitions' : 'images';
  const defaultsOf = view => ({
    view: DEFAULT_VIEW, q: '', sort: view === 'repetitions' ? 'repetition' : 'worst', reverse: '', finish: '', split: '', only: '', same: '', clip: '',
  });
  const state = defaultsOf(DEFAULT_VIEW);

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    const view = views.find(({ key }) => key === given.get('view'))?.key ?? DEFAULT_VIEW;
    const defaults = defaultsOf(view);
    for (const key of Object.keys(defaults)) state[key] = given.get(key) ?? defaults[key];
    state.view = view;
    if (!orders.some(order => order.key === state.sort)) state.sort = defaults.sort;
  }

  function writeAddress() {
    const defaults = defaultsOf(state.view);
    const changed = Object.entries(state).filter(([key, value]) => value !== defaults[key]);
    history.replaceState(null, '', `#${new URLSearchParams(changed)}`);
  }

  function set(changes) {
    Object.assign(state, changes);
    writeAddress();
    show();
  }

  function matches(text) {
    return state.q.toLowerCase().split(/\s+/).every(word => text.includes(word));
  }

  // Images with a first caption that scores at least so much, or less with a < before the number.
  function clipWithin(image) {
    const bound = Number(state.clip.replace('<', ''));
    if (state.clip === '' || Number.isNaN(bound)) return true;
    const scores = image.tables.map((_, table) => first(image, table, CLIP)).filter(known);
    return scores.some(score => (state.clip.startsWith('<') ? score < bound : score >= bound));
  }

  function selected() {
    const finish = facts.finish_reasons.indexOf(state.finish);
    const split = facts.splits.indexOf(state.split);
    const wanted = image =>
      (state.view !== 'repetitions' || repetition(image) > 0) &&
      (state.finish === '' || captions(image).some(caption => caption[FINISH] === finish)) &&
      (state.split === '' || image.split === split) &&
      clipWithin(image) &&
      (state.only !== 'repeats' || repetition(image) > 0) &&
      (state.only !== 'missing' || known(image.missing)) &&
      (state.only !== 'changed' || image.changed) &&
      (state.only !== 'empty' || captions(image).some(isEmpty)) &&
      (state.only !== 'alike' || alike(image) > 2) &&
      (!['y', 'n'].includes(state.only) || marks.of(image) === state.only) &&
      (state.only !== 'unmarked' || marks.of(image) === '') &&
      (state.same === '' || image.tables.some((_, table) => first(image, table, TEXT) === state.same)) &&
      matches(haystack(image));
    const { value } = orders.find(order => order.key === state.sort);
    const sign = state.reverse === '' ? 1 : -1;
    const found = images.filter(wanted).map(image => [image, value(image)]);
    found.sort(([a, x], [b, y]) => known(y) - known(x) || sign * ((y ?? 0) - (x ?? 0)) || a.place - b.place);
    return found.map(([image]) => image);
  }

  // ---- cards

  function figures(caption, isBest) {
    const line = element('p', { className: 'figures' });
    const add = (words, kind = 'span', title = '') => line.append(element(kind, { title }, words));
    if (known(caption[CLIP])) add(`CLIP score ${fixed(caption[CLIP], 3)}`);
    if (known(caption[CIDER])) {
      add(`CIDEr ${fixed(caption[CIDER], 2)}`, isBest ? 'b' : 'span');
      add(`ROUGE-L ${fixed(caption[ROUGE], 2)}`);
    }
    if (known(caption[LOGPROB])) {
      const each = caption[TOKENS] > 0 ? ` (${fixed(caption[LOGPROB] / caption[TOKENS], 2)} a token)` : '';
      add(`log-probability ${fixed(caption[LOGPROB], 2)}${each}`, 'span', 'log-probability of the caption');
    }
    if (known(caption[TOKENS])) add(`${caption[TOKENS]} tokens`);
    const finish = facts.finish_reasons[caption[FINISH]];
    const badges = [];
    if (known(finish) && finish !== 'eos') badges.push(`ends: ${finish}`);
    if (caption[REPETITION] > 0) badges.push(`repeats ${percent(caption[REPETITION])}`);
    badges.forEach(badge => line.append(element('span', { className: 'badge warn' }, badge)));
    return line.childNodes.length > 0 ? line : null;
  }

  function text(words) {
    if (words === '') return element('p', { className: 'caption empty' }, 'an empty caption');
    return element('p', { className: 'caption', lang: HAN.test(words) ? 'zh-CN' : '' }, ...marked(words));
  }

  // The first few of a list, and the others behind a button of the browser's own.
  function list(className, items, name) {
    const all = element('ul', { className }, ...items.slice(0, UNFOLDED));
    if (items.length <= UNFOLDED) return [all];
    const rest = items.slice(UNFOLDED);
    return [all, element('details', { className: 'more' }, element('summary', {}, `${rest.length} more ${name}`), element('ul', { className }, ...rest))];
  }

  function card(image) {
    const node = element('article', { className: facts.pictures ? 'card' : 'card plain', tabIndex: 0, 'aria-label': image.path });
    if (facts.pictures) node.append(pictureOf(image, node));
    const name = element('p', { className: 'name' }, ...marked(image.path));
    const badge = (words, kind, title = '') => name.append(' ', element('span', { className: `badge ${kind}`, title }, words));
    if (image.id) badge(image.id, '', 'image_id');
    if (known(image.split)) badge(facts.splits[image.split], '', 'split');
    if (image.changed) badge('changed since', 'warn', 'The file is not the one that was captioned');
    const gain = facts.tables.length === 2 ? difference(image, 1) : null;
    if (known(gain)) badge(`B \u2212 A ${gain > 0 ? '+' : ''}${fixed(gain, 2)}`, '', 'CIDEr of the first captions');
    const winner = best(image);
    if (facts.tables.length > 2 && winner >= 0) badge(`best: ${LETTERS[winner]}`, '', 'CIDEr of the first captions');
    if (alike(image) > 2) badge(`same caption on ${count(alike(image))}`, 'warn', 'images of this page');
    const body = element('div', {}, name);
    const tables = image.tables.map((list_, table) => {
      const items = list_.map((caption, at) => element('li', {}, text(caption[TEXT]), figures(caption, table === winner && at === 0)));
      const column = element('div', {});
      if (SEVERAL) column.append(element('h3', {}, `${LETTERS[table]}: ${facts.tables[table]}`));
      if (items.length === 0) column.append(element('p', { className: 'figures' }, 'not in this table'));
      else column.append(...list('captions', items, 'captions'));
      return column;
    });
    body.append(element('div', { className: 'tables' }, ...tables));
    if (image.references) {
      const items = image.references.map(words => element('li', { lang: HAN.test(words) ? 'zh-CN' : '' }, ...marked(words)));
      body.append(element('h3', {}, 'references'), ...list('references', items, 'references'));
    }
    body.append(markers(image, node));
    node.append(body);
    return node;
  }

  // Two buttons that say whether the captions are good.
  const MARKS = [['y', '\u2713', 'Good (y)'], ['n', '\u2717', 'Bad (n)']];
  function markers(image, node) {
    const made = MARKS.map(([mark, sign, words]) => {
      const button = element('button', { type: 'button', tabIndex: -1, 'aria-label': words, title: words }, sign);
      button.addEventListener('click', () => marks.set(image, mark));
      return button;
    });
    node.retell = () => {
      const mark = marks.of(image);
      node.dataset.mark = mark;
      made.forEach((button, at) => button.setAttribute('aria-pressed', String(MARKS[at][0] === mark)));
    };
    node.mark = mark => marks.set(image, mark);
    node.retell();
    return element('p', { className: 'markers' }, ...made);
  }

  function pictureOf(image, node) {
    const base64 = picture(image);
    if (!base64) {
      const why = known(image.missing) ? image.missing.replaceAll('_', ' ') : 'not shown';
      return element('div', { className: 'picture none' }, 'image not found', element('br'), why);
    }
    const shown = element('img', { alt: image.path, src: `data:image/jpeg;base64,${base64}`, decoding: 'async' });
    const button = element('button', { className: 'picture', type: 'button', tabIndex: -1, 'aria-label': 'Enlarge or reduce the picture' }, shown);
    button.addEventListener('click', () => enlarge(node));
    return button;
  }

  function enlarge(node) {
    node.classList.toggle('large');
    node.scrollIntoView({ block: 'nearest' });
  }

  // ---- the page

  const root = document.getElementById('report');
  const search = element('input', { type: 'search', placeholder: 'Search (/)', 'aria-label': 'Search names, captions and references', autocomplete: 'off', spellcheck: false });
  const option = (value, words) => element('option', { value }, words);
  const choice = (label, options) => element('select', { 'aria-label': label }, ...options);
  const sort = choice('Sort by', orders.map(order => option(order.key, order.name)));
  const reverse = element('button', { type: 'button', 'aria-label': 'Reverse the order' }, '\u2191\u2193');
  const finish = choice('Ending', [option('', 'any ending'), ...facts.finish_reasons.map(reason => option(reason, `ends: ${reason}`))]);
  const split = choice('Split', [option('', 'any split'), ...facts.splits.map(name => option(name, `split: ${name}`))]);
  const only = choice('Only', [
    option('', 'all images'),
    option('empty', 'with an empty caption'),
    option('alike', 'with a caption of three or more'),
    option('repeats', 'with a repetition'),
    option('y', 'marked good'),
    option('n', 'marked bad'),
    option('unmarked', 'not marked'),
    ...(images.some(image => known(image.missing)) ? [option('missing', 'without a picture')] : []),
    ...(images.some(image => image.changed) ? [option('changed', 'changed since')] : []),
  ]);
  const clip = element('input', { type: 'text', inputMode: 'decimal', size: 9, placeholder: 'CLIP score', 'aria-label': 'CLIP score of at least; below with a < before it', title: '0.25: at least that; <0.25: below it', autocomplete: 'off' });
  const hasClip = images.some(image => captions(image).some(caption => known(caption[CLIP])));
  const help = element('button', { type: 'button', 'aria-label': 'Keys' }, '?');
  const buttons = views.map(({ key, name, size }) => {
    const button = element('button', { type: 'button' }, `${name} ${count(size)}`);
    button.addEventListener('click', () => set({ view: key, sort: defaultsOf(key).sort }));
    return button;
  });
  const told = element('span', { role: 'status', 'aria-live': 'polite' });
  const everything = element('button', { type: 'button' }, 'Show all');
  const exporting = element('button', { type: 'button' });
  const cards = element('section', { className: SEVERAL ? 'cards several' : 'cards', 'aria-label': 'Images' });
  const failures = element('section', { className: 'failures scroll', tabIndex: 0, 'aria-label': 'Failures' });
  const end = element('div', { className: 'end' });
  const keys = dialog();

  const sorting = element('label', {}, element('span', {}, 'sort'), sort);
  const filters = [only, ...(facts.finish_reasons.length > 1 ? [finish] : []), ...(facts.splits.length > 1 ? [split] : []), ...(hasClip ? [clip] : [])];
  const marks = openMarks(facts, images, retell);
  root.append(
    element('h2', { className: 'unseen' }, 'Images'),
    element('div', { className: 'tools', role: 'search' }, element('div', { className: 'views', role: 'group', 'aria-label': 'View' }, ...buttons), search, sorting, reverse, ...filters, help),
    element('p', { className: 'count' }, told, everything, exporting), cards, failures, end, keys,
  );

  let waiting;
  search.addEventListener('input', () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => set({ q: search.value.trim() }), 120);
  });
  sort.addEventListener('change', () => set({ sort: sort.value }));
  reverse.addEventListener('click', () => set({ reverse: state.reverse === '' ? '1' : '' }));
  finish.addEventListener('change', () => set({ finish: finish.value }));
  split.addEventListener('change', () => set({ split: split.value }));
  only.addEventListener('change', () => set({ only: only.value }));
  clip.addEventListener('change', () => set({ clip: clip.value.trim() }));
  help.addEventListener('click', () => keys.showModal());
  everything.addEventListener('click', () => set({ ...defaultsOf(state.view), view: state.view, sort: state.sort, reverse: state.reverse }));
  exporting.addEventListener('click', () => {
    const page = decodeURIComponent(location.pathname.split('/').pop()).replace(/(\.\d+|\.worst)?\.html$/, '');
    const address = URL.createObjectURL(new Blob([marks.list()], { type: 'text/tab-separated-values' }));
    element('a', { href: address, download: `${page || 'report'}.marks.tsv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  });

  // After marks have changed.
  function retell() {
    exporting.textContent = `Export marks (${count(marks.count())})`;
    exporting.hidden = marks.count() === 0;
    for (const node of cards.children) node.retell?.();
  }

  function dialog() {
    const rows = [
      ['/', 'search'],
      ['j k', 'next and previous image'],
      ['\u2190 \u2191 \u2192 \u2193', 'from image to image, once one has the focus'],
      ['Enter', 'enlarge the picture'],
      ['y n', 'mark the captions as good or bad, and go on; the same again takes the mark away'],
      ['u', 'take the mark away'],
      ['1 2 3', 'images, repetitions, failures'],
      ['r', 'reverse the order'],
      ['Esc', 'empty and leave the search'],
      ['?', 'this help'],
    ];
    const terms = rows.flatMap(([key, words]) => [element('dt', {}, ...key.split(' ').flatMap(k => [element('kbd', {}, k), ' '])), element('dd', {}, words)]);
    const close = element('button', { type: 'button', autofocus: true }, 'Close');
    const forget = element('button', { type: 'button' }, 'Forget all marks');
    const made = element('dialog', { 'aria-label': 'Keys' }, element('dl', {}, ...terms), element('div', { className: 'views' }, close, forget));
    close.addEventListener('click', () => made.close());
    forget.addEventListener('click', () => marks.clear());
    return made;
  }

  let found = [];
  let made = 0;
  const near = new IntersectionObserver(entries => {
    if (entries.at(-1).isIntersecting && made < found.length) more();
  }, { rootMargin: '1500px' });

  function more() {
    const next = found.slice(made, made + BATCH);
    cards.append(...next.map(card));
    made += next.length;
    // Observed anew, it tells again whether the end is near.
    near.unobserve(end);
    near.observe(end);
  }

  function show() {
    search.value = state.q;
    [sort.value, finish.value, split.value, only.value, clip.value] = [state.sort, state.finish, state.split, state.only, state.clip];
    reverse.setAttribute('aria-pressed', String(state.reverse !== ''));
    views.forEach((view, at) => buttons[at].setAttribute('aria-pressed', String(view.key === state.view)));
    const failing = state.view === 'failures';
    cards.hidden = failing;
    failures.hidden = !failing;
    for (const control of [sorting, reverse, ...filters]) control.hidden = failing;
    cards.replaceChildren();
    failures.replaceChildren();
    if (failing) {
      everything.hidden = state.q === '';
      return showFailures();
    }
    found = selected();
    made = 0;
    const most = state.view === 'repetitions' ? repeating : images.length;
    told.textContent = found.length === most ? `${count(most)} images` : `${count(found.length)} of ${count(most)} images`;
    if (state.same !== '') told.textContent += ` with the caption \u201c${state.same}\u201d`;
    everything.hidden = ['q', 'finish', 'split', 'only', 'same'].every(key => state[key] === '');
    if (found.length === 0) {
      const none = most === 0 && state.view === 'repetitions' ? 'No caption repeats a 4-gram.' : 'No image fits the search and the filters.';
      cards.append(element('p', { className: 'empty-view' }, none));
    }
    more();
  }

  function showFailures() {
    found = [];
    const rows = facts.failures.filter(row => matches(row.slice(1).join('\n').toLowerCase()));
    const omitted = facts.num_failures - facts.failures.length;
    told.textContent = `${count(rows.length)} of ${count(facts.num_failures)} failures` + (omitted > 0 ? `; ${count(omitted)} more are in the errors table only` : '');
    if (facts.num_failures === 0) {
      failures.append(element('p', { className: 'empty-view' }, 'No image failed.'));
      return;
    }
    const cell = words => element('td', {}, ...marked(words));
    const body = rows.map(([table, path, reason, message]) =>
      element('tr', {}, ...(SEVERAL ? [cell(LETTERS[table])] : []), cell(path), cell(reason), cell(message)));
    const header = [...(SEVERAL ? ['table'] : []), 'image', 'reason', 'message'].map(name => element('th', { scope: 'col' }, name));
    failures.append(element('table', {}, element('thead', {}, element('tr', {}, ...header)), element('tbody', {}, ...body)));
  }

  // ---- keys

  function step(by) {
    const shown = [...cards.querySelectorAll('.card')];
    const at = shown.indexOf(document.activeElement?.closest?.('.card'));
    let next = at < 0 ? 0 : at + by;
    if (at < 0) next = Math.max(0, shown.findIndex(node => node.getBoundingClientRect().bottom > 80));
    if (next >= shown.length && made < found.length) {
      more();
      return step(by);
    }
    shown[Math.min(Math.max(next, 0), shown.length - 1)]?.focus();
  }

  // Marks the image that has the focus and goes on to the next; without one, the first gets the focus.
  function mark(which) {
    const node = document.activeElement?.closest?.('.card');
    if (node) {
      const goesOn = which !== '' && node.dataset.mark !== which;
      node.mark(which);
      if (goesOn) step(1);
    } else {
      step(1);
    }
  }

  const columns = () => getComputedStyle(cards).gridTemplateColumns.split(' ').length;

  document.addEventListener('keydown', event => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const target = event.target;
    if (target === search) {
      if (event.key !== 'Escape') return;
      clearTimeout(waiting);
      set({ q: '' });
      search.blur();
    } else if (target instanceof HTMLInputElement || target instanceof HTMLSelectElement) {
      return;
    } else if (event.key === '/') {
      search.focus();
      search.select();
    } else if (event.key === 'j') {
      step(1);
    } else if (event.key === 'k') {
      step(-1);
    } else if (state.view !== 'failures' && ['y', 'n', 'u'].includes(event.key)) {
      mark(event.key === 'u' ? '' : event.key);
    } else if (event.key === 'r') {
      reverse.click();
    } else if (event.key === '?') {
      keys.showModal();
    } else if (['1', '2', '3'].includes(event.key)) {
      buttons[Number(event.key) - 1].click();
    } else if (target.classList?.contains('card')) {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
      if (event.key in steps) step(steps[event.key]);
      else if (event.key === 'Enter') enlarge(target);
      else return;
    } else {
      return;
    }
    event.preventDefault();
  });

  addEventListener('hashchange', () => {
    readAddress();
    show();
  });
  // Figures make way for the images on a small screen, and come back on paper, where every image found is shown.
  const summary = document.querySelector('details.overview');
  if (summary && matchMedia('(max-width: 42rem)').matches) summary.open = false;
  const PRINTED = 500;
  addEventListener('beforeprint', () => {
    if (summary) summary.open = true;
    while (made < Math.min(found.length, PRINTED)) more();
  });

  readAddress();
  show();
  retell();
  document.documentElement.dataset.ready = String(images.length);
})();
