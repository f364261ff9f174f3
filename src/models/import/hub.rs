//! Hugging Face's cache folders as they lie, and names of its hub.

use std::path::{Path, PathBuf};

use super::ImportError;
use super::cache::{CacheFolder, hub_cache};
use crate::files::paths_in;

/// The folder a path means: itself, the snapshot inside a cache folder (`models--ORG--NAME`), or that of a hub's name in the hub's cache.
///
/// # Errors
/// A cache folder without a snapshot that is meant, or a name on the hub where there is no such folder.
pub fn resolve(path: &Path) -> Result<PathBuf, ImportError> {
    let snapshots = path.join("snapshots");
    if path.is_dir() && snapshots.is_dir() {
        return snapshot(path, &snapshots);
    }
    if path.symlink_metadata().is_err()
        && let Some(name) = hub_name(path)
    {
        if let Some(folder) = CacheFolder::new(&hub_cache(), name).snapshot_of("main") {
            return Ok(folder);
        }
        return Err(ImportError::unusable(
            path,
            format!(
                "no such folder. {name} looks like a name on Hugging Face's hub: `clipcap model get {name}` fetches it (so does `hf download {name}`); then this command finds it by its name"
            ),
        ));
    }
    Ok(path.into())
}

/// The snapshot that `refs/main` names, or the only one.
fn snapshot(cache: &Path, snapshots: &Path) -> Result<PathBuf, ImportError> {
    let main = cache.join("refs/main");
    if let Ok(text) = super::super::config::read_text(&main) {
        let hash = text.trim();
        if hash.is_empty() || !hash.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(ImportError::unusable(main, "it does not name a snapshot"));
        }
        let folder = snapshots.join(hash);
        return match folder.is_dir() {
            true => Ok(folder),
            false => Err(ImportError::unusable(
                cache,
                format!("refs/main names the snapshot {hash}, which is not there: fetch it again with {}", command(cache)),
            )),
        };
    }
    let mut folders = paths_in(snapshots)
        .map_err(|source| ImportError::Config(super::super::config::ConfigError::Io { path: snapshots.into(), source }))?;
    folders.retain(|path| path.is_dir());
    match folders.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(ImportError::unusable(cache, format!("a cache folder without a snapshot: fetch it with {}", command(cache)))),
        several => {
            let names: Vec<String> =
                several.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
            let problem = format!("several snapshots and no refs/main: give one of snapshots/{{{}}}", names.join(", "));
            Err(ImportError::unusable(cache, problem))
        }
    }
}

/// What fetches a cache folder's model.
fn command(cache: &Path) -> String {
    let name = cache.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.strip_prefix("models--") {
        Some(name) => format!("`hf download {}`", name.replacen("--", "/", 1)),
        None => "`hf download`".into(),
    }
}

/// `ORG/NAME`, where a path is spelled so.
fn hub_name(path: &Path) -> Option<&str> {
    let text = path.to_str()?;
    let (org, name) = text.split_once('/')?;
    let plain = |word: &str| {
        !word.is_empty()
            && !word.starts_with(['.', '-'])
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    // A file's name is no model's.
    let is_file = [".pt", ".pth", ".bin", ".safetensors", ".json"].iter().any(|end| name.ends_with(end));
    (plain(org) && plain(name) && !is_file).then_some(text)
}

/// The folder's own name, or the hub's name of the cache folder it lies in.
pub fn known_as(folder: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let cache = folder.parent().filter(|parent| name(parent) == "snapshots").and_then(Path::parent);
    name(cache.unwrap_or(folder))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_cache_folder_means_its_main_snapshot() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("models--org--some--name");
        for hash in ["0a1b", "2c3d"] {
            fs::create_dir_all(cache.join("snapshots").join(hash)).unwrap();
        }
        let several = resolve(&cache).unwrap_err().to_string();
        assert!(several.contains("0a1b, 2c3d"), "{several}");
        fs::create_dir_all(cache.join("refs")).unwrap();
        fs::write(cache.join("refs/main"), "2c3d").unwrap();
        assert_eq!(resolve(&cache).unwrap(), cache.join("snapshots/2c3d"));
        assert_eq!(known_as(&cache.join("snapshots/2c3d")), "models--org--some--name");
        fs::write(cache.join("refs/main"), "../../..").unwrap();
        assert!(resolve(&cache).is_err());
        fs::write(cache.join("refs/main"), "ffff\n").unwrap();
        let gone = resolve(&cache).unwrap_err().to_string();
        assert!(gone.contains("ffff") && gone.contains("hf download org/some--name"), "{gone}");
        fs::remove_file(cache.join("refs/main")).unwrap();
        fs::remove_dir(cache.join("snapshots/0a1b")).unwrap();
        assert_eq!(resolve(&cache).unwrap(), cache.join("snapshots/2c3d"));
    }

    #[test]
    fn a_name_of_the_hub_says_how_to_fetch_it() {
        let message = resolve(Path::new("nobody/has-this-model")).unwrap_err().to_string();
        assert!(message.contains("`clipcap model get nobody/has-this-model`"), "{message}");
        for path in ["models/ViT-B-32.pt", "/openai/clip", "a/b/c", "./a/b", "vit-b-32"] {
            assert_eq!(resolve(Path::new(path)).unwrap(), Path::new(path));
        }
    }
}
