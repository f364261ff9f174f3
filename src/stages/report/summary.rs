//! The head of a report: counts, scores, lengths, model and settings.

use std::fmt::Write;

use super::{ReportData, Table as CaptionTable, triage};
use crate::dataset::distribution::Distribution;
use crate::html::chart::{Bin, Series, histograms, number, thousands};
use crate::html::{Page, Table, escape};
use crate::metrics::METRIC_NAMES;
use crate::stages::evaluate::Level;

const BINS: usize = 20;
/// Names of the scores as people write them, in the order of `METRIC_NAMES`.
const SCORES: [&str; METRIC_NAMES.len()] = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"];
const CIDER: usize = 5;

pub fn add(page: Page, data: &ReportData) -> Page {
    let page = page.raw(&triage::banner(data));
    let several = data.tables.len() > 1;
    let page = if several { page.raw(&versus(data)) } else { page };
    // The script closes it where the screen is small: the images come first.
    let page = page.raw("<details class=\"overview\" open><summary><h2>Figures, charts and settings</h2></summary>\n");
    let page = if several { page.table(&side_by_side(data)) } else { page.facts(&facts(data)) };
    let page = match notes(data) {
        notes if notes.is_empty() => page,
        notes => page.paragraph(&notes),
    };
    let page = page.panels(&panels(data));
    let page = match settings(data) {
        settings if settings.is_empty() => page,
        settings => {
            page.raw("<details class=\"settings\"><summary>Model and settings</summary>\n").table(&settings).raw("</details>\n")
        }
    };
    page.raw("</details>\n")
}

/// Values in words, with their names: everything that is known of a table.
fn figures(data: &ReportData, at: usize) -> Vec<(&'static str, Option<String>)> {
    let (table, measured, findings) = (&data.tables[at], &data.measured.tables[at], &data.findings[at]);
    let count = |name: &str| table.facts.count(name).map(thousands);
    let mean = measured.lengths.figures().map(|figures| number(figures.mean));
    let mut figures = vec![
        ("images found", count("found")),
        ("captioned", Some(thousands(table.facts.count("captioned").unwrap_or(measured.num_images as u64)))),
        ("failed", count("failed")),
        ("skipped, no images", count("skipped")),
        ("captions", Some(thousands(measured.num_captions as u64))),
        ("different first captions", Some(percent(findings.different()))),
        ("empty captions", Some(thousands(findings.num_empty as u64))),
        (if data.measured.level == Level::Char { "characters per caption" } else { "words per caption" }, mean),
        ("log-probability per token", findings.logprob_per_token.map(|mean| format!("{mean:.3}"))),
        ("repeat a 4-gram", Some(percent(measured.diversity.repeated_4gram_rate))),
        ("distinct bigrams", Some(percent(measured.diversity.distinct_2))),
    ];
    // The one that people look for first.
    let order = [CIDER, 4, 0, 1, 2, 3];
    let scores = measured.summary.map(|summary| summary.values());
    figures.extend(order.map(|score| (SCORES[score], scores.map(|scores| format!("{:.4}", scores[score])))));
    figures
}

fn facts(data: &ReportData) -> Vec<(&'static str, String)> {
    // Three scores say enough at a glance.
    let hidden = ["BLEU-1", "BLEU-2", "BLEU-3", "distinct bigrams", "empty captions", "log-probability per token"];
    let shown = |name: &str| !hidden.contains(&name);
    figures(data, 0).into_iter().filter_map(|(name, value)| Some((name, value?))).filter(|(name, _)| shown(name)).collect()
}

/// A few words on each table, side by side: what decides between them, where it differs from the first.
fn versus(data: &ReportData) -> String {
    let mut out = String::from("<div class=\"versus\">\n");
    for (at, table) in data.tables.iter().enumerate() {
        let (measured, findings) = (&data.measured.tables[at], &data.findings[at]);
        let (value, name) = match (&measured.summary, findings.logprob_per_token) {
            (Some(summary), _) => (format!("{:.4}", summary.cider), "CIDEr"),
            (None, Some(mean)) => (format!("{mean:.3}"), "log-probability per token"),
            (None, None) => (percent(findings.different()), "different captions"),
        };
        let comparison = at.checked_sub(1).and_then(|later| data.measured.comparisons[later].as_ref());
        let against = comparison.map_or(String::new(), |found| {
            format!(" <span class=\"against\">{:+.4} (p {:.4})</span>", found.difference[CIDER], found.p_value[CIDER])
        });
        let _ = writeln!(
            out,
            "<section><h2><span class=\"key s{at}\"></span>{}: {}</h2>\n<p><b>{value}</b> {name}{against}</p>\n<p class=\"soft\">{} images, {} different captions, {} empty</p></section>",
            data.letter(at).unwrap_or_default(),
            escape(&table.label),
            thousands(measured.num_images as u64),
            percent(findings.different()),
            thousands(findings.num_empty as u64)
        );
    }
    out + "</div>\n"
}

fn side_by_side(data: &ReportData) -> Table {
    let letters: Vec<&str> = (0..data.tables.len()).filter_map(|at| data.letter(at)).collect();
    let named = letters.iter().zip(&data.tables).map(|(letter, table)| format!("#{letter}: {}", table.label));
    let compared = letters[1..].iter().flat_map(|letter| [format!("#{letter} − A"), "#p".into()]);
    let columns: Vec<String> = std::iter::once(String::new()).chain(named).chain(compared).collect();
    let mut table = Table::new(&columns.iter().map(String::as_str).collect::<Vec<_>>());
    let all: Vec<_> = (0..data.tables.len()).map(|at| figures(data, at)).collect();
    for (row, (name, _)) in all[0].iter().enumerate() {
        let values: Vec<Option<String>> = all.iter().map(|figures| figures[row].1.clone()).collect();
        if values.iter().all(Option::is_none) {
            continue;
        }
        let score = SCORES.iter().position(|score| score == name);
        let compared = data.measured.comparisons.iter().flat_map(|comparison| match (score, comparison) {
            (Some(score), Some(found)) => [format!("{:+.4}", found.difference[score]), format!("{:.4}", found.p_value[score])],
            _ => Default::default(),
        });
        let values = values.into_iter().map(Option::unwrap_or_default);
        table.row(std::iter::once(name.to_string()).chain(values).chain(compared).collect());
    }
    table
}

/// What the figures stand on.
fn notes(data: &ReportData) -> String {
    let mut notes = Vec::new();
    let unmatched = &data.unmatched;
    let scored = data.measured.num_scored;
    if scored > 0 {
        let unit = if data.measured.level == Level::Char { "characters" } else { "words" };
        let is_compared = data.measured.comparisons.iter().any(Option::is_some);
        let test = if is_compared { "; p is a paired permutation test's" } else { "" };
        notes.push(format!(
            "Scores are those of clipcap evaluate, of first captions, by {unit}, on {} images with references{test}.",
            thousands(scored as u64)
        ));
    }
    let left_out = [
        (unmatched.images, "images have no reference"),
        (unmatched.references, "images with references have no caption"),
        (unmatched.in_one_table, "images are not in all of the tables, and not scored"),
    ];
    for (count, what) in left_out.into_iter().filter(|(count, _)| *count > 0) {
        notes.push(format!("{} {what}.", thousands(count as u64)));
    }
    notes.join(" ")
}

fn panels(data: &ReportData) -> Vec<(String, String)> {
    let unit = if data.measured.level == Level::Char { "characters" } else { "words" };
    let tables = &data.measured.tables;
    let name = |at: usize| data.letter(at).map_or(String::new(), |letter| format!("{letter}: {}", data.tables[at].label));
    // All tables on the same axes: what differs in the picture differs in the captions.
    let all = tables.iter().fold(Distribution::default(), |all, table| all.merge(&table.lengths));
    let bin = |(low, high, count)| Bin { low, high, count };
    let lengths: Vec<Series> = tables
        .iter()
        .enumerate()
        .map(|(at, table)| Series { name: name(at), bins: table.lengths.bars_beside(&all, BINS).into_iter().map(bin).collect() })
        .collect();
    let alone = tables.len() == 1;
    let marks = all.figures().filter(|_| alone).map(|f| [("median", f.median), ("p95", f.p95)]);
    let marks = marks.as_ref().map_or(&[][..], |marks| &marks[..]);
    let chart = histograms(&lengths, &format!("{unit} per caption"), "captions", marks);
    let mut panels = vec![(format!("Length in {unit}"), chart)];
    let top = tables.iter().flat_map(|table| &table.ciders).copied().fold(0.0, f64::max);
    if tables.iter().any(|table| !table.ciders.is_empty()) {
        let ciders: Vec<Series> =
            tables.iter().enumerate().map(|(at, table)| Series { name: name(at), bins: bins(&table.ciders, top) }).collect();
        let means: Vec<(String, f64)> = tables
            .iter()
            .enumerate()
            .map(|(at, table)| {
                let mean = table.ciders.iter().sum::<f64>() / table.ciders.len().max(1) as f64;
                (data.letter(at).map_or("mean".into(), |letter| format!("mean of {letter}")), mean)
            })
            .collect();
        let marks: Vec<(&str, f64)> = means.iter().map(|(name, mean)| (name.as_str(), *mean)).collect();
        panels.push(("CIDEr by image".into(), histograms(&ciders, "CIDEr of the first caption", "images", &marks)));
    }
    panels
}

/// From 0 to `top`, which no value exceeds.
fn bins(values: &[f64], top: f64) -> Vec<Bin> {
    let top = top.max(1e-9);
    let width = top / BINS as f64;
    let mut bins: Vec<Bin> = (0..BINS).map(|i| Bin { low: width * i as f64, high: width * (i + 1) as f64, count: 0 }).collect();
    for value in values {
        bins[((value / top * BINS as f64) as usize).min(BINS - 1)].count += 1;
    }
    bins
}

/// Every setting with the value in each table.
fn settings(data: &ReportData) -> Table {
    let labels: Vec<&str> = data.tables.iter().map(|table| table.label.as_str()).collect();
    let mut table = Table::new(&[&["setting"][..], &labels].concat());
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in data.tables.iter().flat_map(|table| &table.facts.settings) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let value = |table: &CaptionTable, name: &str| {
        table.facts.settings.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    for name in names {
        let values = data.tables.iter().map(|table| value(table, name));
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
        let bins = bins(&[0.0, 0.5, 1.0, 2.0], 2.0);
        assert_eq!(bins.len(), BINS);
        assert_eq!(bins.iter().map(|bin| bin.count).sum::<u64>(), 4);
        assert_eq!((bins[0].count, bins[19].count, bins[10].count), (1, 1, 1));
        assert!(super::bins(&[0.0], 0.0).iter().all(|bin| bin.high.is_finite()));
    }
}
