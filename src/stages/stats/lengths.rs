//! Lengths in characters, words and tokens, of everything and by split and source.

use std::collections::BTreeMap;

use anyhow::Result;
use foldhash::HashMap;
use rayon::prelude::*;

use super::phrases::Words;
use crate::dataset::captions::CaptionRows;
use crate::dataset::distribution::Distribution;
use crate::text::Tokenizer;

/// What a length counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Unicode characters, punctuation and spaces too.
    Char,
    /// Words as jieba cuts them, without punctuation.
    Word,
    /// The model's tokens, without special ones.
    Token,
}

impl Unit {
    pub const ALL: [Self; 3] = [Self::Char, Self::Word, Self::Token];

    pub fn name(self) -> &'static str {
        match self {
            Self::Char => "char",
            Self::Word => "word",
            Self::Token => "token",
        }
    }

    /// For people, in the plural.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Char => "characters",
            Self::Word => "words",
            Self::Token => "tokens",
        }
    }
}

/// Captions that are counted together: all of them, those of a split, of a source, or of both.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Group {
    pub split: Option<String>,
    pub source: Option<String>,
}

/// Everything counted by length.
#[derive(Debug, Default)]
pub struct Lengths {
    pub captions: u64,
    pub images: u64,
    /// Captions by length, for each unit that was counted and each group. The group of all is the default one.
    pub by_group: BTreeMap<(Unit, Group), Distribution>,
    /// Images by how many captions they have; empty where the table names no images.
    pub per_image: Distribution,
    pub unknown_tokens: u64,
}

impl Lengths {
    /// The distribution over all captions.
    pub fn all(&self, unit: Unit) -> Option<&Distribution> {
        self.by_group.get(&(unit, Group::default()))
    }

    pub fn units(&self) -> impl Iterator<Item = Unit> {
        Unit::ALL.into_iter().filter(|&unit| self.all(unit).is_some())
    }

    /// The most exact unit that a model's limit can be held against.
    pub fn limiting_unit(&self) -> Unit {
        if self.all(Unit::Token).is_some() { Unit::Token } else { Unit::Char }
    }
}

type Cell<'a> = (Option<&'a str>, Option<&'a str>);

#[derive(Default)]
struct Tally<'a> {
    captions: u64,
    cells: HashMap<Cell<'a>, [Distribution; 3]>,
    images: HashMap<&'a str, u32>,
    unknown: u64,
}

/// Counts every caption once, batch by batch on every core.
pub fn count(rows: &[CaptionRows], words: Option<&[Words]>, tokenizer: Option<&Tokenizer>) -> Result<Lengths> {
    let parts: Vec<Tally> = rows
        .par_iter()
        .enumerate()
        .map(|(at, rows)| count_batch(rows, words.map(|w| &w[at]), tokenizer))
        .collect::<Result<_>>()?;
    let mut lengths = Lengths::default();
    let mut cells: BTreeMap<Cell, [Distribution; 3]> = BTreeMap::new();
    let mut images: HashMap<&str, u32> = HashMap::default();
    for part in &parts {
        lengths.captions += part.captions;
        lengths.unknown_tokens += part.unknown;
        for (cell, units) in &part.cells {
            let into = cells.entry(*cell).or_default();
            for (a, b) in into.iter_mut().zip(units) {
                *a = std::mem::take(a).merge(b);
            }
        }
        for (image, count) in &part.images {
            *images.entry(image).or_default() += count;
        }
    }
    lengths.images = images.len() as u64;
    lengths.per_image = images.values().map(|&count| count as usize).collect();
    let counted = [true, words.is_some(), tokenizer.is_some()];
    for ((split, source), units) in &cells {
        let (split, source) = (split.map(str::to_string), source.map(str::to_string));
        let mut groups = vec![
            Group::default(),
            Group { split: split.clone(), source: None },
            Group { split: None, source: source.clone() },
            Group { split, source },
        ];
        // Where a cell has no split or no source, some of these are the same group.
        groups.sort();
        groups.dedup();
        for group in groups {
            for ((unit, distribution), _) in Unit::ALL.into_iter().zip(units).zip(counted).filter(|(_, counted)| *counted) {
                let into = lengths.by_group.entry((unit, group.clone())).or_default();
                *into = std::mem::take(into).merge(distribution);
            }
        }
    }
    Ok(lengths)
}

fn count_batch<'a>(rows: &'a CaptionRows, words: Option<&Words>, tokenizer: Option<&Tokenizer>) -> Result<Tally<'a>> {
    let mut part = Tally::default();
    let mut previous: Option<(Cell, [Distribution; 3])> = None;
    let mut image: Option<(&str, u32)> = None;
    for (at, row) in rows.iter().enumerate() {
        part.captions += 1;
        let cell = (row.split, row.source);
        // Rows come sorted, so the cell changes seldom.
        if previous.as_ref().is_none_or(|(known, _)| *known != cell) {
            if let Some((known, units)) = previous.take() {
                part.cells.insert(known, units);
            }
            previous = Some((cell, part.cells.remove(&cell).unwrap_or_default()));
        }
        let Some((_, units)) = previous.as_mut() else { continue };
        units[0].add(row.caption.chars().count());
        if let Some(words) = words {
            units[1].add(words.of(at).len());
        }
        if let Some(tokenizer) = tokenizer {
            let ids = tokenizer.encode(row.caption)?;
            part.unknown += ids.iter().filter(|&&id| Some(id) == tokenizer.unk_id()).count() as u64;
            units[2].add(ids.len());
        }
        match (&mut image, row.image) {
            (Some((known, count)), Some(named)) if *known == named => *count += 1,
            (slot, Some(named)) => {
                if let Some((known, count)) = slot.replace((named, 1)) {
                    *part.images.entry(known).or_default() += count;
                }
            }
            (_, None) => {}
        }
    }
    if let Some((known, units)) = previous {
        part.cells.insert(known, units);
    }
    if let Some((known, count)) = image {
        *part.images.entry(known).or_default() += count;
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_add_up() {
        let table = |rows: &[(&str, &str)], source: &str| CaptionRows::from_iter(rows.iter().map(|(i, c)| (*i, *c, source)));
        let rows = [table(&[("1", "一只狗"), ("1", "狗"), ("2", "猫")], "a"), table(&[("2", "两个人")], "b")];
        let lengths = count(&rows, None, None).unwrap();
        assert_eq!((lengths.captions, lengths.images), (4, 2));
        assert_eq!(lengths.all(Unit::Char).unwrap(), &[3, 1, 1, 3].into_iter().collect());
        let group = Group { split: None, source: Some("a".into()) };
        assert_eq!(lengths.by_group[&(Unit::Char, group)].count(), 3);
        assert_eq!(lengths.by_group.len(), 3);
        assert_eq!(lengths.per_image, [2, 2].into_iter().collect());
        assert_eq!(lengths.limiting_unit(), Unit::Char);
    }
}
