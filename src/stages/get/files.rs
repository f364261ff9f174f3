//! Which files of a repository a bundle is made of: configurations, vocabularies, and the weights once.

use anyhow::{Result, bail};

use super::hub::RemoteFile;

/// Configurations, vocabularies, and what says who made it.
const SMALL: [&str; 16] = [
    "config.json",
    "preprocessor_config.json",
    "open_clip_config.json",
    "generation_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "README.md",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "clipcap.json",
];

/// Weights, the best first: of the same numbers in several files one is fetched. A file of parts has an index.
const WEIGHTS: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
];

/// What is fetched of a repository's files.
///
/// # Errors
/// It has no weights that are known here.
pub fn wanted<'a>(name: &str, files: &'a [RemoteFile]) -> Result<Vec<&'a RemoteFile>> {
    let find = |path: &str| files.iter().find(|file| file.path == path);
    // A bundle of ours is a few folders.
    if find("clipcap.json").is_some() {
        return Ok(files.iter().filter(|file| !file.path.starts_with('.')).collect());
    }
    let Some(weights) = WEIGHTS.iter().find_map(|path| find(path)) else {
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).take(12).collect();
        bail!("{name} has no weights that are known here ({}); it holds {} ...", WEIGHTS.join(", "), paths.join(", "));
    };
    let mut wanted: Vec<&RemoteFile> = SMALL.iter().filter_map(|path| find(path)).collect();
    wanted.push(weights);
    if let Some(whole) = weights.path.strip_suffix(".index.json") {
        // `model-00001-of-00002.safetensors`
        let (stem, ending) = whole.rsplit_once('.').unwrap_or((whole, ""));
        let is_part = |path: &str| {
            path.strip_prefix(stem).and_then(|rest| rest.strip_suffix(ending)).is_some_and(|middle| middle.contains("-of-"))
        };
        wanted.extend(files.iter().filter(|file| is_part(&file.path)));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(names: &[&str]) -> Result<Vec<String>> {
        let files: Vec<RemoteFile> =
            names.iter().map(|path| RemoteFile { path: path.to_string(), ..RemoteFile::default() }).collect();
        Ok(wanted("a/b", &files)?.into_iter().map(|file| file.path.clone()).collect())
    }

    #[test]
    fn weights_come_once_and_parts_with_their_index() {
        let all = ["tf_model.h5", "vocab.txt", "config.json", "pytorch_model.bin", "model.safetensors", "onnx/model.onnx"];
        assert_eq!(paths(&all).unwrap(), ["config.json", "vocab.txt", "model.safetensors"]);
        let parts = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "config.json",
        ];
        assert_eq!(paths(&parts).unwrap().len(), 4);
        assert!(paths(&["tf_model.h5"]).unwrap_err().to_string().contains("tf_model.h5"));
        assert_eq!(paths(&["clipcap.json", "clip/model.safetensors", ".gitattributes"]).unwrap().len(), 2);
    }
}
