//! What should be seen at once: a model that says the same of many pictures, captions that are empty or loop.

use std::fmt::Write;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::ReportData;
use super::images::Image;
use crate::html::chart::thousands;
use crate::html::escape;

/// Of the first captions of one table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Findings {
    /// Captions that stand under a suspicious share of the images, and how many those are; the most frequent first.
    pub collapsed: Vec<(String, usize)>,
    /// How many captions differ.
    pub num_different: usize,
    /// Images that have a caption.
    pub num_images: usize,
    pub num_empty: usize,
    /// Captions that were ended because they looped, and because they were too long.
    pub num_looping: usize,
    pub num_cut: usize,
    /// Mean over the captions of their log-probability per token, where that is known.
    pub logprob_per_token: Option<f64>,
}

/// A caption is suspicious under at least so many different pictures, and from this share of all: one in so many.
const LEAST: usize = 3;
const ONE_IN: usize = 20;
/// Collapsed captions that are named.
const NAMED: usize = 3;

impl Findings {
    /// Copies of one picture count once: they should have the same caption.
    pub fn of(images: &[Image], table: usize) -> Self {
        let mut found = Self::default();
        let mut firsts: Vec<(&str, Option<&str>, usize)> = Vec::new();
        let (mut sum, mut known) = (0.0, 0u64);
        for (at, image) in images.iter().enumerate() {
            let captions = &image.tables[table];
            let (Some(caption), Some(details)) = (captions.captions.first(), captions.details.first()) else { continue };
            firsts.push((caption, image.sha256.as_deref().filter(|hash| !hash.is_empty()), at));
            found.num_empty += usize::from(caption.trim().is_empty());
            match details.finish_reason.as_deref() {
                Some("loop") => found.num_looping += 1,
                Some("length") => found.num_cut += 1,
                _ => {}
            }
            if let (Some(logprob), Some(tokens @ 1..)) = (details.logprob, details.num_tokens) {
                sum += logprob / tokens as f64;
                known += 1;
            }
        }
        found.num_images = firsts.len();
        found.logprob_per_token = (known > 0).then(|| sum / known as f64);
        firsts.sort_unstable();
        firsts.dedup_by(|b, a| a.0 == b.0 && a.1.is_some() && a.1 == b.1);
        let mut counts: Vec<(String, usize)> = Vec::new();
        for same in firsts.chunk_by(|a, b| a.0 == b.0) {
            found.num_different += 1;
            let is_much = same.len() >= LEAST && same.len() * ONE_IN >= found.num_images;
            if is_much && !same[0].0.trim().is_empty() {
                counts.push((same[0].0.into(), same.len()));
            }
        }
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counts.truncate(NAMED);
        found.collapsed = counts;
        found
    }

    /// Different captions as a share of all.
    pub fn different(&self) -> f64 {
        self.num_different as f64 / self.num_images.max(1) as f64
    }
}

/// The banner at the top of the first page: nothing where nothing is suspicious. Its links set the filters of the page.
pub fn banner(data: &ReportData) -> String {
    let mut out = String::new();
    for (at, found) in data.findings.iter().enumerate() {
        let of = data.letter(at).map_or(String::new(), |letter| format!("{letter}: "));
        for (caption, count) in &found.collapsed {
            let link = utf8_percent_encode(caption, NON_ALPHANUMERIC);
            let _ = writeln!(
                out,
                "<p>{of}<strong>The same caption on {} images</strong> ({} of all): <q lang=\"zh-CN\">{}</q> <a href=\"#view=images&amp;same={link}\">Show them</a></p>",
                thousands(*count as u64),
                share(*count, found.num_images),
                escape(caption)
            );
        }
        let counts = [
            (found.num_empty, "is empty", "are empty", "only=empty"),
            (found.num_looping, "loops", "loop", "finish=loop"),
            (found.num_cut, "is cut at the length limit", "are cut at the length limit", "finish=length"),
        ];
        let links: Vec<String> = counts
            .iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, many, view)| {
                let words = if *count == 1 { format!("1 {one}") } else { format!("{} {many}", thousands(*count as u64)) };
                format!("<a href=\"#view=images&amp;{view}\">{words}</a>")
            })
            .collect();
        if !links.is_empty() {
            let _ = writeln!(out, "<p>{of}Captions: {}</p>", links.join(", "));
        }
    }
    if out.is_empty() { out } else { format!("<div class=\"banner\">\n{out}</div>\n") }
}

fn share(count: usize, of: usize) -> String {
    let percent = count as f64 / of.max(1) as f64 * 100.0;
    if percent >= 10.0 { format!("{percent:.0}%") } else { format!("{percent:.1}%") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::evaluate::captions::Details;
    use crate::stages::report::images::TableCaptions;

    fn images(captions: &[(&str, Option<&str>, &str)]) -> Vec<Image> {
        let image = |(caption, sha256, reason): &(&str, Option<&str>, &str)| {
            let details =
                Details { logprob: Some(-3.0), num_tokens: Some(2), finish_reason: Some((*reason).into()), ..Details::default() };
            let table = TableCaptions { captions: vec![(*caption).into()], details: vec![details], figures: vec![] };
            Image { sha256: sha256.map(Into::into), tables: vec![table], ..Image::default() }
        };
        captions.iter().map(image).collect()
    }

    #[test]
    fn a_collapsed_model_is_told_and_copies_of_a_picture_are_not() {
        let mut all = vec![("一只狗", None, "eos"); 4];
        all.extend([("猫", Some("aa"), "eos"); 9]);
        all.extend([("", None, "loop"), ("", None, "eos"), ("", None, "eos"), ("鸟", None, "length")]);
        let found = Findings::of(&images(&all), 0);
        assert_eq!(found.collapsed, [("一只狗".to_string(), 4)]);
        assert_eq!((found.num_different, found.num_images), (4, 17));
        assert_eq!((found.num_empty, found.num_looping, found.num_cut), (3, 1, 1));
        assert_eq!(found.logprob_per_token, Some(-1.5));
        // Three of a hundred may well be alike.
        let names: Vec<String> = (0..97).map(|n| n.to_string()).collect();
        let mut many: Vec<(&str, Option<&str>, &str)> = names.iter().map(|name| (name.as_str(), None, "eos")).collect();
        many.extend([("一只狗", None, "eos"); 3]);
        assert!(Findings::of(&images(&many), 0).collapsed.is_empty());
        assert_eq!(Findings::of(&[], 0), Findings::default());
    }
}
