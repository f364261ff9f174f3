//! One self-contained HTML page of the statistics, and their summary for the terminal.

use super::Statistics;
use super::lengths::{Group, Unit};
use super::repeats::Overlap;
use super::tables::cuts;
use crate::dataset::distribution::{Distribution, Figures};
use crate::html::chart::{self, Bin, Series, bars, histogram, number, thousands};
use crate::html::{Page, Table};

/// The page.
pub fn render(statistics: &Statistics) -> String {
    let lengths = &statistics.lengths;
    let mut facts = vec![("captions", thousands(lengths.captions))];
    if lengths.images > 0 {
        facts.push(("images", thousands(lengths.images)));
    }
    for unit in lengths.units() {
        if let Some(figures) = lengths.all(unit).and_then(|d| d.figures()) {
            let name = match unit {
                Unit::Char => "characters per caption (mean)",
                Unit::Word => "words per caption (mean)",
                Unit::Token => "tokens per caption (mean)",
            };
            facts.push((name, number(figures.mean)));
        }
    }
    if let Some(rate) = unknown_rate(statistics) {
        facts.push(("unknown tokens", percent(rate)));
    }
    let mut page =
        Page::new(&format!("Captions: {}", statistics.name), "Lengths, vocabulary and phrases, counted by clipcap stats.")
            .facts(&facts);
    page = page.heading("Length").panels(&histograms(statistics)).table(&lengths_table(statistics));
    page = page.heading("Cut at a limit").paragraph(&cut_text(statistics)).table(&cut_table(statistics));
    page = page.heading("Vocabulary").table(&coverage_table(statistics));
    let unknown = unknown_table(statistics);
    if !unknown.is_empty() {
        page = page.paragraph("Most frequent characters and words that the tokenizer cannot say:").table(&unknown);
    }
    page = page.heading("Repeated captions, and what splits share").paragraph(&repeats_text(statistics));
    if !statistics.repeats.overlaps.is_empty() {
        page = page.table(&overlap_table(statistics));
    }
    if !statistics.repeats.duplicates.is_empty() {
        page = page.table(&duplicates_table(statistics));
    }
    page.heading("Openings and phrases").panels(&phrases(statistics)).finish()
}

fn histograms(statistics: &Statistics) -> Vec<(String, String)> {
    let bin = |(low, high, count): (f64, f64, u64)| Bin { low, high, count };
    let mut panels = Vec::new();
    for unit in statistics.lengths.units() {
        let Some(all) = statistics.lengths.all(unit) else { continue };
        let bins: Vec<Bin> = all.bars(statistics.bins).into_iter().map(bin).collect();
        let marks = all.figures().map(|f| [("median", f.median), ("p95", f.p95)]);
        let chart =
            histogram(&bins, &format!("{} per caption", unit.plural()), "captions", marks.as_ref().map_or(&[], |m| &m[..]));
        panels.push((format!("Length in {}", unit.plural()), chart));
    }
    panels.extend(by_split(statistics));
    let per_image: Vec<(String, u64)> =
        statistics.lengths.per_image.counts().take(40).map(|(captions, images)| (captions.to_string(), images)).collect();
    if !per_image.is_empty() {
        panels.push(("Images by number of captions".into(), bars(&per_image)));
    }
    panels
}

/// Lengths of all splits on the same axes; nothing where there are not several. Splits differ in size, so that shares are shown.
fn by_split(statistics: &Statistics) -> Option<(String, String)> {
    let BySplit { unit, all, splits } = splits_of(statistics)?;
    let series: Vec<Series> = splits
        .into_iter()
        .map(|(split, distribution)| {
            let bins = distribution.bars_beside(all, statistics.bins).into_iter();
            let scale = 1000.0 / distribution.count().max(1) as f64;
            let bin = |(low, high, count): (f64, f64, u64)| Bin { low, high, count: (count as f64 * scale).round() as u64 };
            Series { name: split.into(), bins: bins.map(bin).collect() }
        })
        .collect();
    let chart = chart::histograms(&series, &format!("{} per caption", unit.plural()), "of 1,000 captions", &[]);
    Some((format!("Length in {} by split", unit.plural()), chart))
}

/// Lengths of splits in one unit.
pub struct BySplit<'a> {
    pub unit: Unit,
    /// Of all captions.
    pub all: &'a Distribution,
    pub splits: Vec<(&'a str, &'a Distribution)>,
}

/// The lengths of each split in the first unit that was counted, where there are several splits.
pub fn splits_of(statistics: &Statistics) -> Option<BySplit<'_>> {
    let unit = statistics.lengths.units().next()?;
    let groups = statistics.lengths.by_group.iter().filter(|((of_unit, group), _)| *of_unit == unit && group.source.is_none());
    let splits: Vec<(&str, &Distribution)> =
        groups.filter_map(|((_, group), distribution)| Some((group.split.as_deref()?, distribution))).collect();
    (splits.len() > 1).then_some(BySplit { unit, all: statistics.lengths.all(unit)?, splits })
}

fn repeats_text(statistics: &Statistics) -> String {
    let repeats = &statistics.repeats;
    let all = statistics.lengths.captions;
    let mut text = match repeats.num_repeated() {
        0 => "No caption stands twice.".to_string(),
        count => format!(
            "{} captions ({}) say what another one says: {} different ones; all are in duplicates.parquet.",
            thousands(count),
            rounded_percent(count, all),
            thousands(repeats.duplicates.len() as u64)
        ),
    };
    let has = |kind: &str| repeats.overlaps.iter().any(|overlap| overlap.kind == kind);
    if has("exact") && !has("near") {
        text += " Pictures that look alike were not compared: clipcap prepare --near-duplicates does that.";
    }
    text
}

fn overlap_table(statistics: &Statistics) -> Table {
    let mut table = Table::new(&["what", "in", "of", "#count", "#of all", "#share"]);
    for overlap in &statistics.repeats.overlaps {
        let what = match overlap.kind.as_str() {
            "caption" => "the same captions",
            "exact" => "the same pictures",
            _ => "pictures that look alike",
        };
        table.row(vec![
            what.into(),
            overlap.split.clone(),
            overlap.other_split.clone(),
            thousands(overlap.count),
            thousands(overlap.of),
            percent(overlap.share()),
        ]);
    }
    table
}

fn duplicates_table(statistics: &Statistics) -> Table {
    let mut table = Table::new(&["caption", "#times", "#images", "splits"]);
    for duplicate in statistics.repeats.duplicates.iter().take(20) {
        let splits = duplicate.splits.join(", ");
        table.row(vec![duplicate.caption.clone(), thousands(duplicate.count), thousands(duplicate.images), splits]);
    }
    table
}

const FIGURES: [&str; 13] =
    ["unit", "split", "source", "#count", "#mean", "#std", "#min", "#q1", "#median", "#q3", "#p95", "#p99", "#max"];

fn figures_row(unit: Unit, group: &Group, f: &Figures) -> Vec<String> {
    let or_all = |name: &Option<String>| name.clone().unwrap_or_else(|| "all".into());
    let mut row = vec![unit.name().to_string(), or_all(&group.split), or_all(&group.source), thousands(f.count)];
    row.extend([f.mean, f.std, f.min as f64, f.q1, f.median, f.q3, f.p95, f.p99, f.max as f64].map(number));
    row
}

fn lengths_table(statistics: &Statistics) -> Table {
    let mut table = Table::new(&FIGURES);
    let groups: Vec<_> = statistics.lengths.by_group.iter().collect();
    for (at, ((unit, group), distribution)) in groups.iter().enumerate() {
        // A split that is a file is told once, with both names; what comes later says more.
        let again = |later: &(&(Unit, Group), &Distribution)| later.0.0 == *unit && later.1 == *distribution;
        if *group != Group::default() && groups[at + 1..].iter().any(again) {
            continue;
        }
        if let Some(figures) = distribution.figures() {
            table.row(figures_row(*unit, group, &figures));
        }
    }
    table
}

fn cut_text(statistics: &Statistics) -> String {
    match statistics.lengths.limiting_unit() {
        Unit::Token => "Captions whose tokens, with [SEP], are more than the limit.".into(),
        _ => "Captions whose characters, with one more for [SEP], are more than the limit. Give a model or a vocabulary to count tokens.".into(),
    }
}

fn cut_table(statistics: &Statistics) -> Table {
    let mut table = Table::new(&["#limit", "#captions cut", "#share"]);
    for (limit, count) in cuts(statistics) {
        table.row(vec![limit.to_string(), thousands(count), percent(count as f64 / statistics.lengths.captions.max(1) as f64)]);
    }
    table
}

fn coverage_table(statistics: &Statistics) -> Table {
    let mut table = Table::new(&["unit", "#different", "#occurrences", "#different known", "#occurrences known"]);
    for unit in [Unit::Char, Unit::Word] {
        let coverage = statistics.vocabulary.coverage(unit);
        if coverage.distinct == 0 {
            continue;
        }
        let share =
            |known: Option<u64>, of: u64| known.map_or("needs --vocab".into(), |known| percent(known as f64 / of.max(1) as f64));
        table.row(vec![
            unit.plural().into(),
            thousands(coverage.distinct),
            thousands(coverage.occurrences),
            share(coverage.known_distinct, coverage.distinct),
            share(coverage.known_occurrences, coverage.occurrences),
        ]);
    }
    table
}

fn unknown_table(statistics: &Statistics) -> Table {
    let mut table = Table::new(&["unit", "text", "#occurrences"]);
    for unit in [Unit::Char, Unit::Word] {
        let unknown = statistics.vocabulary.entries(unit).iter().filter(|entry| entry.known == Some(false));
        for entry in unknown.take(15) {
            table.row(vec![unit.name().into(), entry.text.clone(), thousands(entry.count)]);
        }
    }
    table
}

fn phrases(statistics: &Statistics) -> Vec<(String, String)> {
    let first = |top: &[(String, u64)]| bars(&top[..top.len().min(20)]);
    let openings = statistics.phrases.openings.iter().map(|(n, top)| (format!("First {n} characters"), first(top)));
    let ngrams = statistics.phrases.ngrams.iter().map(|(n, top)| (format!("{n} words in a row"), first(top)));
    openings.chain(ngrams).collect()
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

/// `73%`; more exact where that would say none, or all, and it is not so.
fn rounded_percent(count: u64, of: u64) -> String {
    let share = count as f64 / of.max(1) as f64;
    let whole = (share * 100.0).round();
    match whole {
        0.0 if count > 0 => percent(share),
        100.0 if count < of => percent(share),
        whole => format!("{whole}%"),
    }
}

fn unknown_rate(statistics: &Statistics) -> Option<f64> {
    let all = statistics.lengths.all(Unit::Token)?;
    let tokens: u64 = all.counts().map(|(length, count)| length * count).sum();
    Some(statistics.lengths.unknown_tokens as f64 / tokens.max(1) as f64)
}

impl Statistics {
    /// The summary for the terminal.
    pub fn to_text(&self) -> String {
        let images =
            if self.lengths.images > 0 { format!(" of {} images", thousands(self.lengths.images)) } else { String::new() };
        let mut text = format!("{} captions{images}\n", thousands(self.lengths.captions));
        text.push_str(&format!(
            "{:<6} {:<8} {:>9} {:>7} {:>7} {:>5} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}\n",
            "unit", "split", "count", "mean", "std", "min", "q1", "median", "q3", "p95", "p99", "max"
        ));
        for ((unit, group), distribution) in self.lengths.by_group.iter().filter(|((_, group), _)| group.source.is_none()) {
            let Some(f) = distribution.figures() else { continue };
            let split = group.split.as_deref().unwrap_or("all");
            text.push_str(&format!(
                "{:<6} {split:<8} {:>9} {:>7.2} {:>7.2} {:>5} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6}\n",
                unit.name(),
                thousands(f.count),
                f.mean,
                f.std,
                f.min,
                number(f.q1),
                number(f.median),
                number(f.q3),
                number(f.p95),
                number(f.p99),
                f.max
            ));
        }
        for unit in [Unit::Char, Unit::Word] {
            let coverage = self.vocabulary.coverage(unit);
            if coverage.distinct > 0 {
                let known = coverage.known_occurrences.map_or(String::new(), |known| {
                    format!(
                        ", {} of their occurrences known to the tokenizer",
                        percent(known as f64 / coverage.occurrences.max(1) as f64)
                    )
                });
                text.push_str(&format!("{} different {}{known}\n", thousands(coverage.distinct), unit.plural()));
            }
        }
        if let Some(rate) = unknown_rate(self) {
            text.push_str(&format!("{} of tokens are unknown\n", percent(rate)));
        }
        let repeated = self.repeats.num_repeated();
        if repeated > 0 {
            let share = rounded_percent(repeated, self.lengths.captions);
            text.push_str(&format!("{share} ({}) say what another caption says\n", thousands(repeated)));
        }
        for overlap in self.repeats.overlaps.iter().filter(|overlap| overlap.count > 0 && overlap.split == "train") {
            let Overlap { split, other_split, count, of, .. } = overlap;
            let (count, share) = (thousands(*count), rounded_percent(*count, *of));
            text.push_str(&format!("{count} {} of {other_split} ({share}) are in {split} too\n", overlap.what()));
        }
        let unit = self.lengths.limiting_unit().plural();
        for (limit, count) in cuts(self) {
            let share = rounded_percent(count, self.lengths.captions);
            text.push_str(&format!("{share} ({}) exceed {limit} {unit} with [SEP]\n", thousands(count)));
        }
        text
    }

    /// The same as `stats.json`.
    pub fn to_json(&self) -> serde_json::Value {
        super::tables::to_json(self)
    }
}
