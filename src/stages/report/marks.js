'use strict';
// What a reader thinks of an image's captions: y (good) or n (bad). The browser keeps it under the report's identity, for all its pages; a list
// of it can be written to a file.
function openMarks(facts, images, changed) {
  const KEY = `clipcap.marks.${facts.identity}`;
  const here = new Map(images.map(image => [image.path, image]));

  // A mark is of captions: where they are others now, it counts no more. FNV-1a over their text.
  function fingerprint(image) {
    let hash = 0x811c9dc5;
    for (const letter of JSON.stringify(image.tables.map(captions => captions.map(caption => caption[0])))) {
      hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193) >>> 0;
    }
    return hash;
  }

  // Image path to [mark, fingerprint, image id, first caption].
  let kept = new Map();

  function read() {
    try {
      kept = new Map(JSON.parse(localStorage.getItem(KEY) ?? '[]'));
    } catch {
      // A browser may keep nothing for pages of the disk: marks then last as long as the page.
    }
    for (const [path, [, of]] of kept) {
      const image = here.get(path);
      if (image && of !== fingerprint(image)) kept.delete(path);
    }
  }

  function write() {
    try {
      localStorage.setItem(KEY, JSON.stringify([...kept]));
    } catch {
      // As above.
    }
    changed();
  }

  addEventListener('storage', event => {
    if (event.key !== KEY) return;
    read();
    changed();
  });
  read();

  return {
    of: image => kept.get(image.path)?.[0] ?? '',
    // The same mark again takes it away.
    set(image, mark) {
      if (mark === '' || kept.get(image.path)?.[0] === mark) kept.delete(image.path);
      else kept.set(image.path, [mark, fingerprint(image), image.id ?? image.path.replace(/\.[^./]*$/, ''), image.tables.flat()[0]?.[0] ?? '']);
      write();
    },
    clear() {
      kept.clear();
      write();
    },
    count: () => kept.size,
    // A table of what is marked, on every page of the report.
    list() {
      const cell = text => text.replaceAll(/[\t\r\n]/g, ' ');
      const rows = [...kept].sort(([a], [b]) => (a < b ? -1 : 1)).map(([path, [mark, , id, caption]]) => [id, path, mark, caption].map(cell).join('\t'));
      return ['image_id\timage_path\tmark\tcaption', ...rows].join('\n') + '\n';
    },
  };
}
