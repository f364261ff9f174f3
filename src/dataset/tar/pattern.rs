//! Patterns that stand for several files: `set-{000000..000099}.tar`.

use std::io;
use std::path::{Path, PathBuf};

/// Names that a pattern may stand for.
const MOST_NAMES: usize = 1 << 20;

/// The names that a pattern stands for, in order: `set-{000..099}.tar`, `{a,b}.tar`. A file of that very name is itself.
///
/// # Errors
/// A pattern of more than a million names.
pub fn expanded(path: &Path) -> io::Result<Vec<PathBuf>> {
    // Of a URL, braces are a pattern.
    let Some(text) = path.to_str().filter(|text| text.contains('{') && path.symlink_metadata().is_err()) else {
        return Ok(vec![path.into()]);
    };
    let mut open = vec![text.to_string()];
    loop {
        let mut next = Vec::new();
        let mut has_changed = false;
        for text in &open {
            match first_braces(text) {
                Some((before, choices, after)) => {
                    has_changed = true;
                    next.extend(choices.iter().map(|choice| format!("{before}{choice}{after}")));
                }
                None => next.push(text.clone()),
            }
            if next.len() > MOST_NAMES {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a pattern of more than a million names"));
            }
        }
        if !has_changed {
            return Ok(next.into_iter().map(PathBuf::from).collect());
        }
        open = next;
    }
}

/// What is before and behind the first braces that hold choices, and these.
fn first_braces(text: &str) -> Option<(&str, Vec<String>, &str)> {
    for (from, _) in text.match_indices('{') {
        let inside = &text[from + 1..];
        let to = inside.find('}')?;
        let (inside, after) = (&inside[..to], &inside[to + 1..]);
        if let Some(choices) = numbers(inside) {
            return Some((&text[..from], choices, after));
        }
        if inside.contains(',') && !inside.contains('{') {
            return Some((&text[..from], inside.split(',').map(str::to_string).collect(), after));
        }
    }
    None
}

/// `000..012` as numbers of that width.
fn numbers(inside: &str) -> Option<Vec<String>> {
    let (from, to) = inside.split_once("..")?;
    let (first, last): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
    let width = if from.starts_with('0') || to.starts_with('0') { from.len().max(to.len()) } else { 0 };
    let count = last.checked_sub(first)?;
    (count <= MOST_NAMES as u64).then(|| (first..=last).map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_names() {
        let names = |text: &str| -> Vec<String> {
            expanded(Path::new(text)).unwrap().iter().map(|path| path.to_str().unwrap().to_string()).collect()
        };
        assert_eq!(names("x/set-{008..011}.tar"), ["x/set-008.tar", "x/set-009.tar", "x/set-010.tar", "x/set-011.tar"]);
        assert_eq!(names("{a,b}-{1..2}.tar"), ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]);
        assert_eq!(names("{9..10}"), ["9", "10"]);
        for plain in ["a.tar", "{a}.tar", "{3..1}.tar", "{", "{1..}"] {
            assert_eq!(names(plain), [plain]);
        }
        assert!(expanded(Path::new("{0..9999}-{0..9999}")).is_err());
    }
}
