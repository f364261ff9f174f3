//! Layouts with one caption a line of text: `flickr-cn`, `coco-cn` and `tsv`.

use super::batch::{Bad, Batch, Fields, Reason, Take};
use super::lines::{MAX_LINE_BYTES, lines, spans, text_of};
use super::{Format, Translation};
use super::{cells, encoding};
use crate::dataset::normalize::{excerpt, split_tag, without_tags};

/// How the lines of one file are read.
#[derive(Debug, Clone, Copy)]
pub struct TextLayout {
    pub format: Format,
    /// The file's words carry tags (`word:tag`), as seen in its first lines.
    pub tagged: bool,
    /// What the file's name or the caller says of all its captions; a language mark says more.
    pub translation: Translation,
    pub take: Take,
}

/// Parses a block of whole lines. Line numbers count from 1 in the block.
pub fn parse_block(block: Vec<u8>, layout: &TextLayout) -> Batch {
    let mut batch = Batch::default();
    batch.reserve(block.len());
    match text_of(block) {
        Ok(source) => {
            // Mostly there is nothing that could be another encoding.
            let doubted = !layout.take.trusted && encoding::may_be_chance(source.as_bytes());
            for line in spans(source.as_bytes()) {
                count(&mut batch, |batch, number| {
                    if doubted {
                        not_by_chance(&source[line.clone()])?;
                    }
                    parse_line(&source, &source[line], layout, batch, number)
                });
            }
            batch.keep_source(source);
        }
        // Some line is not UTF-8: each is looked at by itself.
        Err(block) => {
            for bytes in lines(&block) {
                count(&mut batch, |batch, number| match checked(bytes, layout.take)? {
                    Some(text) => parse_line("", text, layout, batch, number),
                    None => Ok(false),
                });
            }
        }
    }
    batch
}

/// Counts one line as what `parse` finds it to be: a caption, a blank line (false) or a bad one.
fn count(batch: &mut Batch, parse: impl FnOnce(&mut Batch, u64) -> Result<bool, Bad>) {
    batch.lines += 1;
    let line = batch.lines;
    match parse(batch, line) {
        Ok(true) => {}
        Ok(false) => batch.blank += 1,
        Err(bad) => batch.bad.push((line, bad)),
    }
}

/// Checks that every line parser makes: length, UTF-8, the byte order mark. None for a blank line.
pub fn checked(bytes: &[u8], take: Take) -> Result<Option<&str>, Bad> {
    too_long(bytes)?;
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let (at, cure) = (error.valid_up_to() + 1, encoding::cure(bytes));
        Bad::new(Reason::InvalidUtf8, format!("not UTF-8 at byte {at} ({cure}): {}", excerpt(bytes, 40)))
    })?;
    if !take.trusted && encoding::may_be_chance(bytes) {
        not_by_chance(text)?;
    }
    Ok(content(text))
}

fn not_by_chance(text: &str) -> Result<(), Bad> {
    encoding::by_chance(text).map_or(Ok(()), |chinese| Err(chance(&chinese)))
}

/// Says that a text is UTF-8 by chance.
pub fn chance(chinese: &str) -> Bad {
    let shown = excerpt(chinese.as_bytes(), 40);
    Bad::new(Reason::InvalidUtf8, format!("UTF-8 by chance: in gbk it is {shown} (give --encoding gbk)"))
}

fn too_long(bytes: &[u8]) -> Result<(), Bad> {
    if bytes.len() > MAX_LINE_BYTES {
        return Err(Bad::new(Reason::LineTooLong, format!("longer than {MAX_LINE_BYTES} bytes: {}", excerpt(bytes, 40))));
    }
    Ok(())
}

/// The text without byte order marks, which files joined by `cat` bring along; None where nothing else is there.
fn content(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('\u{feff}');
    (!text.trim_start().is_empty()).then_some(text)
}

fn parse_line(source: &str, text: &str, layout: &TextLayout, batch: &mut Batch, line: u64) -> Result<bool, Bad> {
    too_long(text.as_bytes())?;
    let Some(text) = content(text) else { return Ok(false) };
    if layout.format == Format::Tsv {
        return parse_tsv(source, text, layout, batch, line);
    }
    let fields = hash(text)?;
    let marked = Translation::of_mark(fields.mark);
    let translation = Some(if layout.translation == Translation::Unknown { marked } else { layout.translation });
    let tagged = layout.format == Format::FlickrCn && (layout.tagged || all_tagged(fields.raw));
    let stripped = tagged.then(|| without_tags(fields.raw));
    batch.push(source, line, Fields { translation, text: stripped.as_deref(), ..fields }, layout.take)?;
    Ok(true)
}

/// `image_id<TAB>caption<TAB>caption...`, also with a list in a caption's place. Nothing between tabs is no caption where there are others,
/// unless empty ones are taken.
fn parse_tsv(source: &str, text: &str, layout: &TextLayout, batch: &mut Batch, line: u64) -> Result<bool, Bad> {
    let (image, captions) = tsv(text)?;
    let image = cells::plain(image);
    let before = batch.rows.len();
    let mut result = Ok(());
    let push = |batch: &mut Batch, raw: &str| {
        let fields = Fields { image, raw, translation: Some(layout.translation), ..Fields::default() };
        batch.push(source, line, fields, layout.take)
    };
    for caption in captions.split('\t').map(cells::plain) {
        match cells::captions(caption) {
            None => result = result.and(push(batch, caption)),
            Some(list) => {
                for caption in &list {
                    result = result.and(push(batch, caption));
                }
                if list.is_empty() {
                    result = result.and(Err(Bad::new(Reason::EmptyCaption, "its captions are an empty list")));
                }
            }
        }
    }
    match result {
        Err(bad) if bad.reason != Reason::EmptyCaption || batch.rows.len() == before => {
            batch.drop_rows(before);
            Err(bad)
        }
        _ => Ok(true),
    }
}

/// The image and everything behind the first tab.
fn tsv(text: &str) -> Result<(&str, &str), Bad> {
    text.split_once('\t').ok_or_else(|| {
        Bad::new(Reason::NoSeparator, format!("no tab between image and caption: {}", excerpt(text.as_bytes(), 40)))
    })
}

/// `ID#lang#k<SPACE or TAB>words` or `ID#k<TAB>caption`. The key ends at the first white space, or at a tab where the id holds spaces.
fn hash(text: &str) -> Result<Fields<'_>, Bad> {
    let text = text.trim_start();
    let end = text.bytes().position(|b| matches!(b, b' ' | b'\t')).unwrap_or(text.len());
    hash_at(text, end).or_else(|bad| match text.find('\t') {
        Some(tab) if tab > end => hash_at(text, tab).map_err(|_| bad),
        _ => Err(bad),
    })
}

fn hash_at(text: &str, end: usize) -> Result<Fields<'_>, Bad> {
    let (key, raw) = text.split_at(end);
    let bad = |reason, what: &str| Bad::new(reason, format!("{what}: {}", excerpt(text.as_bytes(), 40)));
    let Some((rest, number)) = key.rsplit_once('#') else {
        return Err(bad(Reason::NoSeparator, "no # in the key before the caption"));
    };
    let number = parse_number(number).ok_or_else(|| bad(Reason::BadId, "the text after the last # is not a caption number"))?;
    let (image, mark) = match rest.rsplit_once('#') {
        Some((image, mark)) if is_mark(mark) => (image, mark),
        _ => (rest, ""),
    };
    if raw.is_empty() {
        return Err(bad(Reason::EmptyCaption, "no caption behind the key"));
    }
    Ok(Fields { image, raw: &raw[1..], number: Some(number), mark, ..Fields::default() })
}

fn parse_number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn is_mark(text: &str) -> bool {
    (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether every word (of two at least) carries a tag.
pub fn all_tagged(raw: &str) -> bool {
    if memchr::memchr(b':', raw.as_bytes()).is_none() {
        return false;
    }
    let mut words = 0;
    raw.split_whitespace().all(|token| {
        words += 1;
        split_tag(token).is_some()
    }) && words > 1
}

/// What a line looks like, for the detection of layouts.
pub fn layout_of(text: &str) -> Option<Format> {
    match hash(text) {
        Ok(fields) if !fields.mark.is_empty() => Some(Format::FlickrCn),
        Ok(_) => Some(Format::CocoCn),
        Err(_) => tsv(text).ok().filter(|(image, _)| !image.trim().is_empty()).map(|_| Format::Tsv),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(format: Format) -> TextLayout {
        TextLayout { format, tagged: false, translation: Translation::Unknown, take: Take::default() }
    }

    #[test]
    fn flickr_lines_with_space_tab_and_tags() {
        let text =
            "100#zhb#0 两 个 男孩\n100#zhb#1\t一只 狗\r\n\n200#zhm#0 一架:m 飞机:n 在:p\nno key here\n200#zhm#x 狗\n300#zhb#4\n";
        let batch = parse_block(text.as_bytes().to_vec(), &layout(Format::FlickrCn));
        let rows: Vec<_> =
            batch.rows.iter().map(|r| (batch.get(r.image), batch.get(r.caption), r.number, r.translation)).collect();
        assert_eq!(
            rows,
            [
                ("100", "两个男孩", Some(0), Translation::Machine),
                ("100", "一只狗", Some(1), Translation::Machine),
                ("200", "一架飞机在", Some(0), Translation::Human),
            ]
        );
        assert_eq!(batch.get(batch.rows[2].raw), "一架:m 飞机:n 在:p");
        let bad: Vec<_> = batch.bad.iter().map(|(line, bad)| (*line, bad.reason)).collect();
        assert_eq!(bad, [(5, Reason::NoSeparator), (6, Reason::BadId), (7, Reason::EmptyCaption)]);
        assert_eq!((batch.lines, batch.blank), (7, 1));
    }

    #[test]
    fn coco_cn_and_tsv() {
        let batch = parse_block("COCO_val2014_1#0\t一个 人\n".into(), &layout(Format::CocoCn));
        assert_eq!((batch.get(batch.rows[0].image), batch.get(batch.rows[0].caption)), ("COCO_val2014_1", "一个人"));
        let text = "\u{feff}a b.jpg\t一 个\t\t人\n狗\nb\t['猫', '黑猫']\nc\t\t\n";
        let batch = parse_block(text.into(), &layout(Format::Tsv));
        let rows: Vec<_> = batch.rows.iter().map(|r| (batch.get(r.image), batch.get(r.caption), r.line)).collect();
        assert_eq!(rows, [("a b.jpg", "一个", 1), ("a b.jpg", "人", 1), ("b", "猫", 3), ("b", "黑猫", 3)]);
        let bad: Vec<_> = batch.bad.iter().map(|(line, bad)| (*line, bad.reason)).collect();
        assert_eq!(bad, [(2, Reason::NoSeparator), (4, Reason::EmptyCaption)]);
        let empty = TextLayout { take: Take { empty: true, ..Take::default() }, ..layout(Format::Tsv) };
        assert_eq!(parse_block("a\t\t人\n".into(), &empty).rows.len(), 2);
    }

    #[test]
    fn an_id_may_hold_a_hash_or_a_space() {
        let batch = parse_block("a#b c#0\t狗\nx#1#zhb#2 猫\na b c 狗\n".into(), &layout(Format::FlickrCn));
        assert_eq!(batch.bad.len(), 1);
        assert_eq!((batch.get(batch.rows[0].image), batch.get(batch.rows[1].image)), ("a#b c", "x#1"));
    }

    #[test]
    fn lines_look_like_what_they_are() {
        assert_eq!(layout_of("1#zhb#0 狗"), Some(Format::FlickrCn));
        assert_eq!(layout_of("1#zhb#0\t狗"), Some(Format::FlickrCn));
        assert_eq!(layout_of("1.jpg#0\t狗"), Some(Format::CocoCn));
        assert_eq!(layout_of("1.jpg\t狗 #1"), Some(Format::Tsv));
        assert_eq!(layout_of("狗"), None);
    }

    proptest! {
        #[test]
        fn every_line_is_accounted_for(bytes in proptest::collection::vec(prop_oneof![
            any::<u8>(), Just(b'\n'), Just(b'\t'), Just(b'#'), Just(b'0'), Just(b' '), Just(0u8), Just(b'\r')], 0..200)) {
            for format in [Format::FlickrCn, Format::CocoCn, Format::Tsv] {
                let batch = parse_block(bytes.clone(), &layout(format));
                let expected = lines(&bytes).count() as u64;
                prop_assert_eq!(batch.lines, expected);
                let good: std::collections::BTreeSet<u64> = batch.rows.iter().map(|row| row.line).collect();
                prop_assert_eq!(good.len() as u64 + batch.bad.len() as u64 + batch.blank, expected);
            }
        }
    }
}
