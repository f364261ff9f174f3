//! Which file of a folder holds the weights; and where none does, what lies there instead.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::WeightsError;
use crate::files::{open_regular, paths_in};

/// Ends of names that downloads bear before they are whole.
const UNFINISHED: [&str; 9] =
    [".part", ".partial", ".incomplete", ".crdownload", ".aria2", ".download", ".opdownload", ".tmp", ".filepart"];

/// Ends of names that weights bear, ours and others'.
const WEIGHT_LIKE: [&str; 12] =
    [".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".npz", ".index.json"];

/// What a training script leaves beside the weights.
const NOT_WEIGHTS: [&str; 5] = ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "optimizer.bin"];

/// The first of `names` that is whole in `folder`; None where nothing there looks like weights.
///
/// # Errors
/// Nothing whole, and something that looks like weights: unfinished, a pointer, a link to nothing, or of another name.
pub(super) fn find(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>, WeightsError> {
    let mut found = vec![];
    for name in names {
        let path = folder.join(name);
        if path.symlink_metadata().is_err() {
            continue;
        }
        match flaw(&path) {
            None => return Ok(Some(path)),
            Some(flaw) => found.push(format!("{name} ({flaw})")),
        }
    }
    for place in [folder.to_path_buf(), folder.join(".cache/huggingface/download"), folder.join("../../blobs")] {
        let of_folder = place == *folder;
        for path in paths_in(&place).unwrap_or_default() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let lower = name.to_lowercase();
            let ends = |list: &[&str]| list.iter().any(|end| lower.ends_with(end));
            if names.contains(&name.as_str()) || NOT_WEIGHTS.contains(&lower.as_str()) || path.is_dir() {
                continue;
            }
            if ends(&UNFINISHED) {
                found.push(format!("{name} (an unfinished download)"));
            } else if of_folder && ends(&WEIGHT_LIKE) {
                found.push(format!("{name} ({})", flaw(&path).unwrap_or("not a name that is read".into())));
            }
        }
    }
    if found.is_empty() {
        return Ok(None);
    }
    let problem = format!(
        "no whole weight file in this folder. It holds {}; what is read is {}. Finish the download, or give the file its name",
        found.join(", "),
        names.join(", ")
    );
    Err(WeightsError::invalid(folder, problem))
}

/// What keeps a file from being read as weights.
fn flaw(path: &Path) -> Option<String> {
    let Ok(metadata) = path.metadata() else { return Some("a link to nothing".into()) };
    let mut beside = path.file_name().unwrap_or_default().to_os_string();
    beside.push(".aria2");
    if !metadata.is_file() {
        Some("not a file".into())
    } else if metadata.len() == 0 {
        Some("empty".into())
    } else if path.with_file_name(beside).symlink_metadata().is_ok() {
        Some("an unfinished download: aria2's record lies beside it".into())
    } else if is_pointer(path) {
        Some("a git-lfs pointer: `git lfs pull` fetches the file".into())
    } else {
        None
    }
}

/// True for what git leaves in place of a file that git-lfs keeps.
pub(super) fn is_pointer(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = open_regular(path).and_then(|file| file.take(24).read_to_end(&mut head));
    read.is_ok() && head.starts_with(b"version https://git-lfs")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NAMES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

    #[test]
    fn what_lies_there_is_told_by_name() {
        let cases: [(&str, &[u8], &str); 7] = [
            ("model.safetensors.part", b"x", "unfinished"),
            ("model.safetensors.incomplete", b"x", "unfinished"),
            ("Unconfirmed 12.crdownload", b"x", "unfinished"),
            ("model (1).safetensors", b"x", "not a name that is read"),
            ("pytorch_model.pt", b"x", "not a name that is read"),
            ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git-lfs pointer"),
            ("model.safetensors", b"", "empty"),
        ];
        for (name, bytes, wanted) in cases {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), bytes).unwrap();
            let message = find(folder.path(), &NAMES).unwrap_err().to_string();
            assert!(message.contains(name) && message.contains(wanted), "{name}: {message}");
        }
    }

    #[test]
    fn a_whole_file_counts_whatever_lies_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(find(folder.path(), &NAMES).unwrap(), None);
        fs::write(path("config.json"), "{}").unwrap();
        fs::write(path("training_args.bin"), "x").unwrap();
        assert_eq!(find(folder.path(), &NAMES).unwrap(), None);
        std::os::unix::fs::symlink(path("nowhere"), path("model.safetensors")).unwrap();
        assert!(find(folder.path(), &NAMES).unwrap_err().to_string().contains("a link to nothing"));
        fs::write(path("pytorch_model.bin"), "x").unwrap();
        assert_eq!(find(folder.path(), &NAMES).unwrap(), Some(path("pytorch_model.bin")));
        fs::write(path("pytorch_model.bin.aria2"), "x").unwrap();
        assert!(find(folder.path(), &NAMES).unwrap_err().to_string().contains("aria2's record"));
    }
}
