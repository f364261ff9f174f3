//! An evaluation as JSON, and as a table for people.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::clip::ClipTable;
use super::levels::TableScores;
use super::{Candidate, Evaluation};
use crate::metrics::{CLIP_METRIC_NAMES, Interval, METRIC_NAMES};
use crate::table::FORMAT_KEY;

/// What an evaluation's JSON calls itself.
const FORMAT: &str = "evaluation/1";

impl Evaluation {
    /// `{"char": {"bleu_1".."bleu_4", "rouge_l", "cider"}, "word": {...}}` with raw scores (1.0 is 100%), and beside them `coverage`,
    /// `candidate`, `captions` (length and variety by level), and, where they were asked for, `clip` (`clip_score`, `ref_clip_score`),
    /// `intervals` and `comparison`.
    pub fn to_json(&self) -> Value {
        let by_level = |value: &dyn Fn(&super::LevelScores) -> Value| -> Map<String, Value> {
            self.levels.iter().map(|level| (level.level.name().to_string(), value(level))).collect()
        };
        let mut root = by_level(&|level| by_metric(|m| json!(level.predictions.summary.values()[m])));
        root.insert(FORMAT_KEY.into(), json!(FORMAT));
        root.insert("candidate".into(), json!(self.candidate.name()));
        root.insert("coverage".into(), json!(self.coverage));
        root.insert("captions".into(), Value::Object(by_level(&|level| variety(&level.predictions, self.images.len()))));
        if let Some(clip) = &self.clip {
            let mut means = by_clip(|m| json!(clip.predictions.mean.values()[m]));
            means["images"] = clip.num_images.into();
            root.insert("clip".into(), means);
        }
        if self.rounds == 0 {
            return Value::Object(root);
        }
        let resampled = |mut levels: Map<String, Value>| {
            levels.insert("rounds".into(), json!(self.rounds));
            levels.insert("seed".into(), json!(self.seed));
            Value::Object(levels)
        };
        let mut intervals = by_level(&|level| match &level.predictions.intervals {
            Some(intervals) => by_metric(|m| interval(&intervals[m])),
            None => Value::Null,
        });
        if let Some(found) = self.clip.as_ref().and_then(|clip| clip.predictions.intervals) {
            intervals.insert("clip".into(), by_clip(|m| interval(&found[m])));
        }
        root.insert("intervals".into(), resampled(intervals));
        if self.levels.iter().any(|level| level.compared.is_some()) {
            let mut comparison = by_level(&|level| match &level.compared {
                Some((second, comparison)) => {
                    let mut metrics = by_metric(|m| {
                        json!({
                            "second": second.summary.values()[m],
                            "difference": comparison.difference[m],
                            "interval": interval(&comparison.interval[m]),
                            "p_value": comparison.p_value[m],
                        })
                    });
                    metrics["captions"] = variety(second, self.images.len());
                    metrics
                }
                None => Value::Null,
            });
            if let Some((second, Some(found))) = self.clip.as_ref().and_then(|clip| clip.compared.as_ref()) {
                let metrics = by_clip(|m| {
                    json!({
                        "second": second.mean.values()[m],
                        "difference": found.difference[m],
                        "interval": interval(&found.interval[m]),
                        "p_value": found.p_value[m],
                    })
                });
                comparison.insert("clip".into(), metrics);
            }
            root.insert("comparison".into(), resampled(comparison));
        }
        Value::Object(root)
    }

    /// The same for a terminal.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let captions = match (self.coverage.max_candidates, self.candidate) {
            (0 | 1, _) => "one caption each".to_string(),
            (n, Candidate::First) => format!("the first of up to {n} captions each"),
            (n, Candidate::Oracle) => format!("the best by CIDEr (oracle) of up to {n} captions each"),
        };
        line(&mut out, &format!("{} images with {} references, {captions}\n", self.coverage.images, self.coverage.references));
        line(&mut out, &row("", ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"].map(String::from)));
        for level in &self.levels {
            let name = level.level.name();
            table_rows(&mut out, name, &level.predictions);
            if let Some((second, comparison)) = &level.compared {
                table_rows(&mut out, &format!("{name}, second table"), second);
                line(&mut out, &row("  difference", comparison.difference.map(|value| format!("{value:+.4}"))));
                line(&mut out, &row("  from", comparison.interval.map(|interval| format!("{:+.4}", interval.low))));
                line(&mut out, &row("  to", comparison.interval.map(|interval| format!("{:+.4}", interval.high))));
                line(&mut out, &row("  p", comparison.p_value.map(|p| format!("{p:.4}"))));
            }
        }
        self.clip_rows(&mut out);
        if self.rounds > 0 {
            let test = if self.levels.iter().any(|level| level.compared.is_some()) { "; p: paired permutation test" } else { "" };
            line(&mut out, &format!("from, to: 95% bootstrap interval, {} rounds, seed {}{test}", self.rounds, self.seed));
        }
        let header = ["length", "min..max", "empty", "distinct-1", "distinct-2", "repeating"].map(String::from);
        line(&mut out, &format!("\n{}  commonest opening", row("captions", header)));
        for level in &self.levels {
            let name = level.level.name();
            variety_row(&mut out, name, &level.predictions, self.images.len());
            if let Some((second, _)) = &level.compared {
                variety_row(&mut out, &format!("{name}, second table"), second, self.images.len());
            }
        }
        line(&mut out, "length in tokens; repeating: share of captions with a 4-gram more than once");
        out
    }

    /// CLIP's scores, where there are any.
    fn clip_rows(&self, out: &mut String) {
        let Some(clip) = &self.clip else { return };
        let of = if clip.num_images < self.images.len() { format!("of {} images", clip.num_images) } else { String::new() };
        line(out, &format!("\n{}", clip_row(&of, ["CLIPScore", "RefCLIPScore"].map(String::from))));
        let table = |out: &mut String, name: &str, table: &ClipTable| {
            line(out, &clip_row(name, table.mean.values().map(|value| format!("{value:.4}"))));
            if let Some(intervals) = &table.intervals {
                line(out, &clip_row("  from", intervals.map(|interval| format!("{:.4}", interval.low))));
                line(out, &clip_row("  to", intervals.map(|interval| format!("{:.4}", interval.high))));
            }
        };
        table(out, "clip", &clip.predictions);
        if let Some((second, comparison)) = &clip.compared {
            table(out, "clip, second table", second);
            if let Some(found) = comparison {
                line(out, &clip_row("  difference", found.difference.map(|value| format!("{value:+.4}"))));
                line(out, &clip_row("  from", found.interval.map(|interval| format!("{:+.4}", interval.low))));
                line(out, &clip_row("  to", found.interval.map(|interval| format!("{:+.4}", interval.high))));
                line(out, &clip_row("  p", found.p_value.map(|p| format!("{p:.4}"))));
            }
        }
    }
}

fn by_clip(value: impl Fn(usize) -> Value) -> Value {
    Value::Object(CLIP_METRIC_NAMES.iter().enumerate().map(|(m, name)| (name.to_string(), value(m))).collect())
}

fn by_metric(value: impl Fn(usize) -> Value) -> Value {
    Value::Object(METRIC_NAMES.iter().enumerate().map(|(m, name)| (name.to_string(), value(m))).collect())
}

fn interval(interval: &Interval) -> Value {
    json!([interval.low, interval.high])
}

fn variety(table: &TableScores, num_captions: usize) -> Value {
    let found = &table.diversity;
    let opening = found.opening.as_ref().map(
        |opening| json!({"text": table.opening, "count": opening.count, "share": opening.count as f64 / num_captions as f64}),
    );
    json!({
        "mean_len": found.mean_len,
        "min_len": found.min_len,
        "max_len": found.max_len,
        "num_empty": found.num_empty,
        "distinct_1": found.distinct_1,
        "distinct_2": found.distinct_2,
        "repeated_4gram_rate": found.repeated_4gram_rate,
        "commonest_opening": opening,
    })
}

fn table_rows(out: &mut String, name: &str, table: &TableScores) {
    line(out, &row(name, table.summary.values().map(|value| format!("{value:.4}"))));
    if let Some(intervals) = &table.intervals {
        line(out, &row("  from", intervals.map(|interval| format!("{:.4}", interval.low))));
        line(out, &row("  to", intervals.map(|interval| format!("{:.4}", interval.high))));
    }
}

fn variety_row(out: &mut String, name: &str, table: &TableScores, num_captions: usize) {
    let found = &table.diversity;
    let columns = [
        format!("{:.2}", found.mean_len),
        format!("{}..{}", found.min_len, found.max_len),
        found.num_empty.to_string(),
        format!("{:.4}", found.distinct_1),
        format!("{:.4}", found.distinct_2),
        format!("{:.4}", found.repeated_4gram_rate),
    ];
    let opening = match (&table.opening, &found.opening) {
        (Some(text), Some(opening)) => format!("{text} ({:.1}%)", 100.0 * opening.count as f64 / num_captions as f64),
        _ => String::new(),
    };
    line(out, &format!("{}  {opening}", row(name, columns)));
}

fn clip_row(name: &str, columns: [String; 2]) -> String {
    format!("{name:<20} {:>12} {:>12}", columns[0], columns[1])
}

fn row(name: &str, columns: [String; 6]) -> String {
    columns.iter().fold(format!("{name:<20}"), |mut row, column| {
        // Writing to a string cannot fail.
        let _ = write!(row, " {column:>10}");
        row
    })
}

fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end_matches(' '));
    out.push('\n');
}
