//! What a caption file's path says: a name for its rows that holds no machine's folders, its split, who translated it.

use std::path::{Path, PathBuf};

use super::{CaptionError, Translation};
use crate::remote;

/// A name for each file, in the files' order: the file name, or as many of the last parts of its path as tell it from the others.
pub fn source_names(paths: &[PathBuf]) -> Result<Vec<String>, CaptionError> {
    let parts: Vec<Vec<String>> = paths.iter().map(|path| parts(path)).collect();
    let tail = |at: usize, count: usize| parts[at][parts[at].len().saturating_sub(count)..].join("/");
    (0..paths.len())
        .map(|at| {
            let longest = parts[at].len().max(1);
            (1..=longest)
                .map(|count| (count, tail(at, count)))
                .find(|(count, name)| (0..paths.len()).all(|other| other == at || tail(other, *count) != *name))
                .map(|(_, name)| name)
                .ok_or_else(|| CaptionError::Twice(remote::shown(&paths[at])))
        })
        .collect()
}

fn parts(path: &Path) -> Vec<String> {
    if remote::is_url(path) {
        let name = remote::name_of(path);
        return String::from_utf8_lossy(&name).split('/').filter(|part| !part.is_empty()).map(str::to_string).collect();
    }
    // One file under two spellings is the same file.
    let full = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    full.components()
        .filter_map(|c| match c {
            std::path::Component::Normal(part) => Some(part.to_string_lossy().into_owned()),
            _ => None,
        })
        .collect()
}

/// `train`, `dev` or `test` where the file's name says one of them and only one.
pub fn implied_split(source: &str, inside_words: bool) -> Option<&'static str> {
    let name = source.rsplit('/').next().unwrap_or(source).to_lowercase();
    let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
    let words: Vec<&str> = stem.split(|c: char| !c.is_ascii_alphabetic()).filter(|w| !w.is_empty()).collect();
    let says = |names: &[&str]| words.iter().any(|w| names.iter().any(|n| w == n || inside_words && w.ends_with(n)));
    let found: Vec<&str> = [("train", &["train"][..]), ("dev", &["val", "valid", "validation", "dev"]), ("test", &["test"])]
        .iter()
        .filter(|(_, names)| says(names))
        .map(|(split, _)| *split)
        .collect();
    match found[..] {
        [one] => Some(one),
        _ => None,
    }
}

/// The split that an imagefolder's metadata file says by the folder it lies in: `validation/metadata.jsonl`.
pub fn split_of_folder(path: &Path) -> Option<&'static str> {
    let is_metadata = path.file_stem().is_some_and(|stem| stem == "metadata");
    let folder = path.parent().filter(|_| is_metadata)?.file_name()?.to_string_lossy().into_owned();
    implied_split(&folder, false)
}

/// `human` or `machine` where the file's name says so (`human-written`, `manually-translated`, `machine-translated`).
pub fn implied_translation(source: &str) -> Translation {
    let name = source.rsplit('/').next().unwrap_or(source).to_lowercase();
    let human = ["human", "manual", "coco-cn", "coco_cn", "cococn"].iter().any(|word| name.contains(word));
    match (name.contains("machine"), human) {
        (true, false) => Translation::Machine,
        (false, true) => Translation::Human,
        _ => Translation::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_different() {
        let names = |paths: &[&str]| source_names(&paths.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(names(&["/x/a/c.txt", "/x/b/c.txt", "/x/b/d.txt"]).unwrap(), ["a/c.txt", "b/c.txt", "d.txt"]);
        assert!(names(&["/x/a", "/x/a"]).is_err());
    }

    #[test]
    fn the_published_names_say_their_split() {
        assert_eq!(implied_split("seg.flickr30kzhbbosontrain.caption.txt", true), Some("train"));
        assert_eq!(implied_split("seg.flickr30kzhbbosontrain.caption.txt", false), None);
        assert_eq!(implied_split("flickr_caption-val.txt", false), Some("dev"));
        assert_eq!(implied_split("flickr30kzhmbosontest", true), Some("test"));
        assert_eq!(implied_split("captions_val2014.json", false), Some("dev"));
        assert_eq!(implied_split("train_and_test.txt", true), None);
        assert_eq!(implied_split("contest.tsv", false), None);
        assert_eq!(split_of_folder(Path::new("hf/validation/metadata.jsonl")), Some("dev"));
        assert_eq!(split_of_folder(Path::new("hf/train/captions.jsonl")), None);
    }

    #[test]
    fn the_published_names_say_who_wrote() {
        assert_eq!(implied_translation("imageid.human-written-caption.txt"), Translation::Human);
        assert_eq!(implied_translation("imageid.manually-translated-caption.txt"), Translation::Human);
        assert_eq!(implied_translation("imageid.machine-translated-caption.txt"), Translation::Machine);
        assert_eq!(implied_translation("captions.tsv"), Translation::Unknown);
    }
}
