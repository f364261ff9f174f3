//! The head of a report: counts, scores, lengths, model and settings.

use super::{Gathered, Table as CaptionTable};
use crate::html::chart::{Bin, histogram, number, thousands};
use crate::html::{Page, Table};
use crate::metrics::METRIC_NAMES;
use crate::stages::evaluate::Level;

const BINS: usize = 20;
/// Names of the scores as people write them, in the order of `METRIC_NAMES`.
const SCORES: [&str; METRIC_NAMES.len()] = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"];
const CIDER: usize = 5;

pub fn add(page: Page, gathered: &Gathered) -> Page {
    let page = match gathered.tables.len() {
        1 => page.facts(&facts(gathered)),
        _ => page.table(&side_by_side(gathered)),
    };
    let page = match notes(gathered) {
        notes if notes.is_empty() => page,
        notes => page.paragraph(&notes),
    };
    let page = page.panels(&panels(gathered));
    match settings(gathered) {
        settings if settings.is_empty() => page,
        settings => {
            page.raw("<details class=\"settings\"><summary>Model and settings</summary>\n").table(&settings).raw("</details>\n")
        }
    }
}

/// Values in words, with their names: everything that is known of a table.
fn figures(gathered: &Gathered, at: usize) -> Vec<(&'static str, Option<String>)> {
    let (table, measured) = (&gathered.tables[at], &gathered.measured.tables[at]);
    let count = |name: &str| table.companions.count(name).map(thousands);
    let mean = measured.lengths.figures().map(|figures| number(figures.mean));
    let mut figures = vec![
        ("images found", count("found")),
        ("captioned", Some(thousands(table.companions.count("captioned").unwrap_or(measured.num_images as u64)))),
        ("failed", count("failed")),
        ("skipped, no images", count("skipped")),
        ("captions", Some(thousands(measured.num_captions as u64))),
        (if gathered.measured.level == Level::Char { "characters a caption" } else { "words a caption" }, mean),
        ("repeat a 4-gram", Some(percent(measured.diversity.repeated_4gram_rate))),
        ("distinct bigrams", Some(percent(measured.diversity.distinct_2))),
    ];
    // The one that people look for first.
    let order = [CIDER, 4, 0, 1, 2, 3];
    let scores = measured.summary.map(|summary| summary.values());
    figures.extend(order.map(|score| (SCORES[score], scores.map(|scores| format!("{:.4}", scores[score])))));
    figures
}

fn facts(gathered: &Gathered) -> Vec<(&'static str, String)> {
    // Three scores say enough at a glance.
    let shown = |name: &str| !["BLEU-1", "BLEU-2", "BLEU-3", "distinct bigrams"].contains(&name);
    figures(gathered, 0).into_iter().filter_map(|(name, value)| Some((name, value?))).filter(|(name, _)| shown(name)).collect()
}

fn side_by_side(gathered: &Gathered) -> Table {
    let columns: Vec<String> =
        gathered.tables.iter().zip(["A", "B"]).map(|(table, letter)| format!("#{letter}: {}", table.label)).collect();
    let mut table = Table::new(&["", &columns[0], &columns[1], "#B − A", "#p"]);
    for ((name, first), (_, second)) in figures(gathered, 0).into_iter().zip(figures(gathered, 1)) {
        if first.is_none() && second.is_none() {
            continue;
        }
        let score = SCORES.iter().position(|score| *score == name);
        let compared = score.and_then(|score| {
            let comparison = gathered.measured.comparison.as_ref()?;
            Some([format!("{:+.4}", comparison.difference[score]), format!("{:.4}", comparison.p_value[score])])
        });
        let [difference, p] = compared.unwrap_or_default();
        table.row(vec![name.into(), first.unwrap_or_default(), second.unwrap_or_default(), difference, p]);
    }
    table
}

/// What the figures stand on.
fn notes(gathered: &Gathered) -> String {
    let mut notes = Vec::new();
    let unmatched = &gathered.unmatched;
    let scored = gathered.measured.num_scored;
    if scored > 0 {
        let unit = if gathered.measured.level == Level::Char { "characters" } else { "words" };
        let test = if gathered.measured.comparison.is_some() { "; p is a paired permutation test's" } else { "" };
        notes.push(format!(
            "Scores are those of clipcap evaluate, of first captions, by {unit}, on {} images with references{test}.",
            thousands(scored as u64)
        ));
    }
    let left_out = [
        (unmatched.images, "images have no reference"),
        (unmatched.references, "images with references have no caption"),
        (unmatched.in_one_table, "images are in one of the tables only, and not scored"),
    ];
    for (count, what) in left_out.into_iter().filter(|(count, _)| *count > 0) {
        notes.push(format!("{} {what}.", thousands(count as u64)));
    }
    notes.join(" ")
}

fn panels(gathered: &Gathered) -> Vec<(String, String)> {
    let unit = if gathered.measured.level == Level::Char { "characters" } else { "words" };
    let of = |at: usize| match gathered.tables.len() {
        1 => String::new(),
        _ => format!(", {}", ["A", "B"][at]),
    };
    let mut panels = Vec::new();
    for (at, table) in gathered.measured.tables.iter().enumerate() {
        let marks = table.lengths.figures().map(|f| [("median", f.median), ("p95", f.p95)]);
        let bins: Vec<Bin> = table.lengths.bars(BINS).into_iter().map(|(low, high, count)| Bin { low, high, count }).collect();
        let chart = histogram(&bins, &format!("{unit} in a caption"), "captions", marks.as_ref().map_or(&[], |m| &m[..]));
        panels.push((format!("Length in {unit}{}", of(at)), chart));
    }
    for (at, table) in gathered.measured.tables.iter().enumerate().filter(|(_, table)| !table.ciders.is_empty()) {
        let mean = table.ciders.iter().sum::<f64>() / table.ciders.len() as f64;
        let chart = histogram(&bins(&table.ciders), "CIDEr of the first caption", "images", &[("mean", mean)]);
        panels.push((format!("CIDEr by image{}", of(at)), chart));
    }
    panels
}

/// From 0 to the greatest value.
fn bins(values: &[f64]) -> Vec<Bin> {
    let top = values.iter().copied().fold(0.0, f64::max).max(1e-9);
    let width = top / BINS as f64;
    let mut bins: Vec<Bin> = (0..BINS).map(|i| Bin { low: width * i as f64, high: width * (i + 1) as f64, count: 0 }).collect();
    for value in values {
        bins[((value / top * BINS as f64) as usize).min(BINS - 1)].count += 1;
    }
    bins
}

/// Every setting with the value in each table.
fn settings(gathered: &Gathered) -> Table {
    let labels: Vec<&str> = gathered.tables.iter().map(|table| table.label.as_str()).collect();
    let mut table = Table::new(&[&["setting"][..], &labels].concat());
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in gathered.tables.iter().flat_map(|table| &table.companions.settings) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let value = |table: &CaptionTable, name: &str| {
        table.companions.settings.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    for name in names {
        let values = gathered.tables.iter().map(|table| value(table, name));
        table.row(std::iter::once(name.to_string()).chain(values).collect());
    }
    table
}

fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_score_falls_into_a_bin() {
        let bins = bins(&[0.0, 0.5, 1.0, 2.0]);
        assert_eq!(bins.len(), BINS);
        assert_eq!(bins.iter().map(|bin| bin.count).sum::<u64>(), 4);
        assert_eq!((bins[0].count, bins[19].count, bins[10].count), (1, 1, 1));
        assert!(super::bins(&[0.0]).iter().all(|bin| bin.high.is_finite()));
    }
}
