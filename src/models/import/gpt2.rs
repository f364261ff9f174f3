//! A Chinese GPT2 in a Hugging Face folder, or the one inside a ClipCap checkpoint.

use std::path::{Path, PathBuf};

use super::{Catalog, ImportError, catalog, match_part, presets};
use crate::models::config::{Gpt2Config, read_json};
use crate::models::part::Part;
use crate::models::tensors::gpt2_tensors;
use crate::models::weights::WeightSource;

/// A GPT2 to take over: configuration, vocabulary, and weights where there are any.
pub struct Gpt2Source {
    path: PathBuf,
    pub config: Gpt2Config,
    /// `vocab.txt`, byte for byte.
    pub vocabulary: Vec<u8>,
    /// Whether text is put into lower case before it is cut into pieces.
    pub lower_case: bool,
    pub weights: Option<WeightSource>,
    /// Files of the source to keep as they are.
    pub kept_files: Vec<PathBuf>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// Larger files are not vocabularies.
const MAX_VOCABULARY_BYTES: u64 = 64 << 20;

impl Gpt2Source {
    /// A preset's name, or a folder with `config.json`, `vocab.txt` and perhaps weights. Where `make_vocabulary`, a folder without
    /// `vocab.txt` gets one made here.
    pub fn open(path: &Path, make_vocabulary: bool) -> Result<Self, ImportError> {
        if let Some(config) = presets::gpt2_preset(path) {
            let vocabulary = presets::made_vocabulary(config.vocab_size).into_bytes();
            let source = Self {
                path: path.into(),
                config,
                vocabulary,
                lower_case: true,
                weights: None,
                kept_files: vec![],
                notes: vec![],
            };
            return Ok(source);
        }
        let path = &super::hub::resolve(path)?;
        if !path.is_dir() {
            return Err(ImportError::unusable(path, "a folder with config.json and vocab.txt is expected, or a preset's name"));
        }
        let config_path = path.join("config.json");
        let config = Gpt2Config::read(&config_path)?;
        let vocabulary_path = path.join("vocab.txt");
        let mut notes = vec![];
        let vocabulary = match (vocabulary_path.is_file(), make_vocabulary) {
            (true, _) => read_vocabulary(&vocabulary_path)?,
            (false, true) => {
                notes.push(format!("{}: no vocab.txt; a vocabulary of {} entries was made", path.display(), config.vocab_size));
                presets::made_vocabulary(config.vocab_size).into_bytes()
            }
            (false, false) => return Err(ImportError::unusable(path, "vocab.txt is missing; it belongs beside the weights")),
        };
        let unended = vocabulary.last().is_some_and(|&byte| byte != b'\n');
        let lines = vocabulary.iter().filter(|&&byte| byte == b'\n').count() + usize::from(unended);
        if lines > config.vocab_size {
            let problem =
                format!("{lines} entries and the model's vocab_size is {}: they do not belong together", config.vocab_size);
            return Err(ImportError::unusable(vocabulary_path, problem));
        }
        if lines < config.vocab_size {
            let (path, size) = (vocabulary_path.display(), config.vocab_size);
            notes.push(format!("{path}: {lines} entries, and the model has {size}: tokens without an entry are never chosen"));
        }
        let found = match WeightSource::find_in(path) {
            // The checkpoint may hold the weights.
            Err(error) if !make_vocabulary => {
                notes.push(error.to_string());
                None
            }
            found => found?,
        };
        let weights = found.map(|found| WeightSource::open(&found)).transpose()?;
        let others = ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"];
        let mut kept_files: Vec<PathBuf> = others.iter().map(|name| path.join(name)).filter(|path| path.is_file()).collect();
        // The head is tied in a bundle, whatever the file says; one that says otherwise is written anew.
        if config.tie_word_embeddings {
            kept_files.push(config_path);
        }
        let lower_case = lower_case(&path.join("tokenizer_config.json"), &vocabulary)?;
        let config = Gpt2Config { tie_word_embeddings: true, ..config };
        Ok(Self { path: path.into(), config, vocabulary, lower_case, weights, kept_files, notes })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's weights as a part; without weights: new ones.
    pub fn part(&self, seed: u64) -> Result<Part<'_>, ImportError> {
        match &self.weights {
            Some(weights) => gpt2_part(&self.config, weights, catalog(weights, |name| Some(name.to_owned()))),
            None => Ok(Part::random(gpt2_tensors(&self.config), seed)),
        }
    }
}

/// What `tokenizer_config.json` says; where it is silent, a vocabulary without capital letters is a lower-case one.
fn lower_case(tokenizer_config: &Path, vocabulary: &[u8]) -> Result<bool, ImportError> {
    if tokenizer_config.is_file() {
        let config: serde_json::Value = read_json(tokenizer_config)?;
        if let Some(said) = config.get("do_lower_case").and_then(serde_json::Value::as_bool) {
            return Ok(said);
        }
    }
    // Special tokens are written in capitals, between brackets.
    let mut pieces = vocabulary.split(|&byte| byte == b'\n').filter(|piece| !piece.starts_with(b"[") && !piece.starts_with(b"<"));
    Ok(!pieces.any(|piece| piece.iter().any(u8::is_ascii_uppercase)))
}

/// The bytes of a `vocab.txt`.
pub(crate) fn read_vocabulary(path: &Path) -> Result<Vec<u8>, ImportError> {
    use std::io::Read;
    let io = |source| ImportError::Config(crate::models::config::ConfigError::Io { path: path.into(), source });
    let mut bytes = Vec::new();
    crate::files::open_regular(path).map_err(io)?.take(MAX_VOCABULARY_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_VOCABULARY_BYTES {
        return Err(ImportError::unusable(path, "too large for a vocabulary"));
    }
    Ok(bytes)
}

/// GPT2's part from a catalog of `transformer.*` (or bare) names of one source.
pub(super) fn gpt2_part<'a>(
    config: &Gpt2Config,
    source: &'a WeightSource,
    mut catalog: Catalog<'a>,
) -> Result<Part<'a>, ImportError> {
    // A GPT2Model saved without its head has bare names.
    if catalog.contains_key("wte.weight") {
        catalog = catalog.into_iter().map(|(name, content)| (format!("transformer.{name}"), content)).collect();
    }
    // Causal masks that older releases stored with the weights.
    let is_mask = |name: &str| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    catalog.retain(|name, _| !is_mask(name));
    let head = catalog.remove("lm_head.weight").or_else(|| catalog.remove("transformer.lm_head.weight"));
    if let (Some(head), Some(embeddings)) = (head, catalog.get("transformer.wte.weight"))
        && let (Some(head), Some(embeddings)) = (head.stored_name(), embeddings.stored_name())
        && !source.same(head, embeddings)?
    {
        let problem = format!("{head} differs from {embeddings}: a GPT2 with an untied head is not supported");
        return Err(ImportError::unusable(source.path(), problem));
    }
    match_part("this GPT2", source.path().into(), &gpt2_tensors(config), catalog)
}
