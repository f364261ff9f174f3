"""Byte-level pairs of bytes: learned from a few texts, CLIP's kind or GPT2's."""

import collections
import json
import re

def byte_letters():
    """The letter that stands for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}


LETTERS = byte_letters()
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+"
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"


def words(text, is_clip):
    """A text as words, each a list of pieces of one byte."""
    for word in re.findall(CLIP_WORDS if is_clip else GPT2_WORDS, text.lower() if is_clip else text):
        pieces = [LETTERS[byte] for byte in word.encode()]
        yield tuple(pieces[:-1] + [pieces[-1] + "</w>"]) if is_clip else tuple(pieces)


def merged(pieces, pair):
    out, at = [], 0
    while at < len(pieces):
        both = tuple(pieces[at : at + 2]) == pair
        out.append("".join(pair) if both else pieces[at])
        at += 2 if both else 1
    return out


class Pairs:
    """A vocabulary learned from texts."""

    def __init__(self, texts, is_clip, count, ends):
        self.is_clip, self.merges = is_clip, []
        learned = [list(word) for text in texts for word in words(text, is_clip)]
        while len(self.merges) < count:
            found = collections.Counter(pair for word in learned for pair in zip(word, word[1:]))
            if not found:
                break
            pair = min(found, key=lambda pair: (-found[pair], pair))
            self.merges.append(pair)
            learned = [merged(word, pair) for word in learned]
        letters = [LETTERS[byte] for byte in range(256)]
        suffixed = [letter + "</w>" for letter in letters] if is_clip else []
        self.pieces = letters + suffixed + ["".join(pair) for pair in self.merges] + ends
        self.ids = {piece: at for at, piece in enumerate(self.pieces)}

    def encode(self, text):
        ids = []
        for word in words(text, self.is_clip):
            pieces = list(word)
            for pair in self.merges:
                pieces = merged(pieces, pair)
            ids += [self.ids[piece] for piece in pieces]
        return [self.ids["<|startoftext|>"], *ids, self.ids["<|endoftext|>"]] if self.is_clip else ids

    def decode(self, ids):
        bytes_ = {letter: byte for byte, letter in LETTERS.items()}
        return bytes(bytes_[letter] for at in ids for letter in self.pieces[at]).decode()

    def write(self, folder):
        (folder / "vocab.json").write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def tokenizer_json(self):
        """The same in one file, as the tokenizers library writes it."""
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        end = {"id": len(self.pieces) - 1, "content": self.pieces[-1], "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}
        model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                 "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": self.ids,
                 "merges": [list(pair) for pair in self.merges]}
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None,
                "pre_tokenizer": level, "post_processor": None, "decoder": level, "model": model}
