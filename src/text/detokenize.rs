//! Pieces to text: Chinese characters close up, Latin words and numbers keep their spaces.
//!
//! WordPiece forgets spaces, so they are put back by rule: one between two words of a spaced script, also across ASCII punctuation
//! (`hello, world`), none next to a Chinese character. Numbers (`3.5`, `10:30`), contractions and hyphens stay together.

use super::han::is_spaced_word;

/// Joins pieces (`##` marks one that continues the word before it). White space and control characters inside a piece are dropped.
pub fn join_pieces<'a>(pieces: impl IntoIterator<Item = &'a str>) -> String {
    let mut joiner = Joiner::default();
    for piece in pieces {
        joiner.push(piece);
    }
    joiner.finish()
}

/// How an ASCII punctuation mark stands between two words.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// A space before it: `(`.
    Opens,
    /// A space after it: `,`.
    Closes,
    /// None at all: `-`.
    Binds,
}

#[derive(Default)]
struct Joiner {
    text: String,
    /// Where the last word or character in `text` starts.
    last_start: usize,
    /// ASCII punctuation since then, not yet in `text`: its spacing depends on what follows.
    marks: Vec<(char, Side)>,
    quote_is_open: bool,
}

impl Joiner {
    fn push(&mut self, piece: &str) {
        let (continues, body) = match piece.strip_prefix("##") {
            Some(body) if !body.is_empty() => (true, body),
            _ => (false, piece),
        };
        let clean = |c: &char| !c.is_whitespace() && !c.is_control();
        let mut chars = body.chars().filter(clean);
        let Some(first) = chars.next() else { return };
        if !continues && first.is_ascii_punctuation() && chars.next().is_none() {
            let side = self.side(first);
            self.marks.push((first, side));
            return;
        }
        let between_words = !continues && is_spaced_word(first) && self.text.chars().next_back().is_some_and(is_spaced_word);
        if between_words {
            self.put_marks_between_words(body)
        } else {
            self.put_marks_closed_up()
        }
        if !continues {
            self.last_start = self.text.len();
        }
        self.text.extend(body.chars().filter(clean));
    }

    fn finish(mut self) -> String {
        self.put_marks_closed_up();
        self.text
    }

    fn side(&mut self, mark: char) -> Side {
        match mark {
            '(' | '[' | '{' | '$' | '#' => Side::Opens,
            ',' | '.' | '!' | '?' | ';' | ':' | ')' | ']' | '}' | '%' => Side::Closes,
            '"' => {
                self.quote_is_open = !self.quote_is_open;
                if self.quote_is_open { Side::Opens } else { Side::Closes }
            }
            _ => Side::Binds,
        }
    }

    fn put_marks_closed_up(&mut self) {
        self.text.extend(self.marks.drain(..).map(|(mark, _)| mark));
    }

    fn put_marks_between_words(&mut self, next: &str) {
        let last = &self.text[self.last_start..];
        if let [(mark, _)] = self.marks[..]
            && binds_its_neighbours(last, mark, next)
        {
            return self.put_marks_closed_up();
        }
        // A word closes behind itself, like a comma, and the next opens, like a bracket.
        let mut left = Side::Closes;
        for (mark, side) in self.marks.drain(..) {
            if left == Side::Closes && side == Side::Opens {
                self.text.push(' ');
            }
            self.text.push(mark);
            left = side;
        }
        if left == Side::Closes {
            self.text.push(' ');
        }
    }
}

/// `3.5`, `1,000`, `10:30`, `u.s`: one mark inside what was one word before WordPiece split it.
fn binds_its_neighbours(left: &str, mark: char, right: &str) -> bool {
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let is_letter = |word: &str| word.len() == 1 && word.bytes().all(|b| b.is_ascii_alphabetic());
    match mark {
        '.' | ',' | ':' if is_digit(left.chars().next_back()) && is_digit(right.chars().next()) => true,
        '.' => is_letter(left) && is_letter(right),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(pieces: &str) -> String {
        join_pieces(pieces.split(' '))
    }

    #[test]
    fn chinese_closes_up_and_latin_words_keep_their_space() {
        assert_eq!(joined("穿 着 t 恤 衫 的 人 在 看 iphone 15 手 机"), "穿着t恤衫的人在看iphone 15手机");
        assert_eq!(joined("两 个 人 ， 一 只 狗 。"), "两个人，一只狗。");
        assert_eq!(joined("the sky ##scrap ##er 在"), "the skyscraper在");
        assert_eq!(joined("他 说 ： 「 ok 」 。"), "他说：「ok」。");
        assert_eq!(joined("楼 上 , 靠 在 t 恤 , 上"), "楼上,靠在t恤,上");
    }

    #[test]
    fn ascii_punctuation_between_latin_words_is_spaced_as_in_english() {
        assert_eq!(joined("hello , world !"), "hello, world!");
        assert_eq!(joined("a dog ( brown ) runs"), "a dog (brown) runs");
        assert_eq!(joined("it says \" stop \" twice"), "it says \"stop\" twice");
        assert_eq!(joined("don ' t black - and - white"), "don't black-and-white");
        assert_eq!(joined("3 . 5 at 10 : 30 in the u . s . for $ 1 , 000"), "3.5 at 10:30 in the u.s. for $1,000");
        assert_eq!(joined("wait ! ! ! 5 % off"), "wait!!! 5% off");
        assert_eq!(joined("iphone ( 手 机 ) ok"), "iphone(手机)ok");
    }

    #[test]
    fn odd_pieces_do_no_harm() {
        assert_eq!(joined("##ing dog ##"), "ing dog##");
        assert_eq!(join_pieces([""]), "");
        assert_eq!(join_pieces(["a\tb", "\u{2028}", "\0", "c"]), "ab c");
        assert_eq!(join_pieces([",", "##s", "(", "##"]), ",s(##");
    }
}
