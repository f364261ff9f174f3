//! A table for a paper: images, captions and lengths by split, as LaTeX with booktabs.

use super::Statistics;
use super::lengths::{Group, Unit};
use crate::html::chart::thousands;

/// `table.tex`.
pub fn render(statistics: &Statistics) -> String {
    let units: Vec<Unit> = statistics.lengths.units().collect();
    let mut out = format!("% \\usepackage{{booktabs}}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n", "r".repeat(2 + units.len()));
    let heads = units.iter().map(|unit| format!(" & {} per caption", capital(unit.plural())));
    out += &format!("Split & Images & Captions{} \\\\\n\\midrule\n", heads.collect::<String>());
    let row = |name: &str, images: u64, captions: u64, group: &Group| {
        let length = |unit: &Unit| {
            let figures = statistics.lengths.by_group.get(&(*unit, group.clone())).and_then(|d| d.figures());
            figures.map_or(" & ".into(), |f| format!(" & ${:.1} \\pm {:.1}$", f.mean, f.std))
        };
        // A table without images has none to count.
        let images = if images > 0 { grouped(images) } else { "--".into() };
        format!("{} & {images} & {}{} \\\\\n", escape(name), grouped(captions), units.iter().map(length).collect::<String>())
    };
    for (split, size) in &statistics.repeats.splits {
        out += &row(split, size.images, size.captions, &Group { split: Some(split.clone()), source: None });
    }
    if statistics.repeats.splits.len() != 1 {
        if !statistics.repeats.splits.is_empty() {
            out += "\\midrule\n";
        }
        out += &row("all", statistics.lengths.images, statistics.lengths.captions, &Group::default());
    }
    out + "\\bottomrule\n\\end{tabular}\n"
}

/// Digits in threes, with a comma that makes no space in mathematics either.
fn grouped(count: u64) -> String {
    thousands(count).replace(',', "{,}")
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
}

/// Text in which nothing is a command.
fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '\\' => out.push_str("\\textbackslash{}"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_commands() {
        assert_eq!(escape("a_b & 5% \\x{~}"), "a\\_b \\& 5\\% \\textbackslash{}x\\{\\textasciitilde{}\\}");
        assert_eq!((grouped(1_234_567), capital("words")), ("1{,}234{,}567".into(), "Words".into()));
    }
}
