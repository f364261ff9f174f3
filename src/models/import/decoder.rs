//! A decoder in a Hugging Face folder, or the one inside a ClipCap checkpoint.

use std::path::{Path, PathBuf};

use super::{Catalog, ImportError, catalog, match_part, presets};
use crate::models::config::{ConfigError, DecoderConfig, Gpt2Config, read_json};
use crate::models::decoders::{architecture, decoder_tensors};
use crate::models::part::Part;
use crate::models::weights::WeightSource;
use crate::text::{Endings, TextError, Vocabulary};

/// A decoder to take over: configuration, vocabulary, and weights where there are any.
pub struct DecoderSource {
    path: PathBuf,
    /// Of GPT2 or of the Llama family (Qwen2, Qwen3, Mistral).
    pub config: DecoderConfig,
    /// The tokenizer's files, whole.
    pub vocabulary: Vocabulary,
    /// What ends a text, as the folder says it.
    pub endings: Endings,
    /// None: a preset, or a folder with a configuration alone; weights are then drawn from a seed.
    pub weights: Option<WeightSource>,
    /// Files of the source to keep as they are.
    pub kept_files: Vec<PathBuf>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

impl DecoderSource {
    /// A preset's name, or a folder with `config.json`, a vocabulary (`vocab.txt`, `tokenizer.json`, or `vocab.json` and `merges.txt`) and
    /// perhaps weights. Where `make_vocabulary`, a folder without a vocabulary gets one made here.
    pub fn open(path: &Path, make_vocabulary: bool) -> Result<Self, ImportError> {
        if let Some((config, vocabulary)) = presets::decoder_preset(path) {
            let endings = endings(None, None, &config, &vocabulary)?;
            let path = path.into();
            return Ok(Self { path, config, vocabulary, endings, weights: None, kept_files: vec![], notes: vec![] });
        }
        let path = &super::hub::resolve(path)?;
        if !path.is_dir() {
            let expected = "a folder with config.json and vocab.txt (or tokenizer.json, or vocab.json and merges.txt) is expected, or a preset's name";
            return Err(ImportError::unusable(path, expected));
        }
        let config_path = path.join("config.json");
        let config = DecoderConfig::read(&config_path)?;
        let size = architecture(&config).sizes().vocab_size;
        let mut notes = vec![];
        let is_lower = |pieces: &[u8]| lower_case(&path.join("tokenizer_config.json"), pieces);
        let vocabulary = match (Vocabulary::find::<ImportError>(path, is_lower)?, make_vocabulary) {
            (Some(found), _) => found,
            (None, true) => {
                notes.push(format!("{}: no vocabulary; one of {size} entries was made", path.display()));
                Vocabulary::WordPiece { pieces: presets::made_vocabulary(size).into_bytes(), lower_case: true }
            }
            (None, false) => {
                let problem = "the vocabulary is missing (vocab.txt, tokenizer.json, or vocab.json and merges.txt); it belongs beside the weights";
                return Err(ImportError::unusable(path, problem));
            }
        };
        if let Vocabulary::WordPiece { pieces, .. } = &vocabulary {
            let unended = pieces.last().is_some_and(|&byte| byte != b'\n');
            let lines = pieces.iter().filter(|&&byte| byte == b'\n').count() + usize::from(unended);
            let file = path.join("vocab.txt");
            if lines > size {
                let problem = format!("{lines} entries and the model's vocab_size is {size}: they do not belong together");
                return Err(ImportError::unusable(file, problem));
            }
            if lines < size {
                notes.push(format!(
                    "{}: {lines} entries, and the model has {size}: tokens without an entry are never chosen",
                    file.display()
                ));
            }
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
        let others = ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
        let mut kept_files: Vec<PathBuf> = others.iter().map(|name| path.join(name)).filter(|path| path.is_file()).collect();
        let json = |name: &str| -> Result<Option<serde_json::Value>, ConfigError> {
            let path = path.join(name);
            if path.is_file() { read_json(&path).map(Some) } else { Ok(None) }
        };
        let endings = endings(json("generation_config.json")?, json("config.json")?, &config, &vocabulary)?;
        kept_files.push(config_path);
        let source = Self { path: path.into(), config, vocabulary, endings, weights: None, kept_files, notes };
        let Some(weights) = weights else { return Ok(source) };
        let config = with_head(&source.config, &weights, &catalog(&weights, |name| Some(name.to_owned())))?;
        Ok(Self { weights: Some(weights), ..source.with_config(config) })
    }

    /// The same with another configuration, which is written anew where it differs from the file's.
    pub fn with_config(mut self, config: DecoderConfig) -> Self {
        if config != self.config {
            self.kept_files.retain(|path| path.file_name().is_none_or(|name| name != "config.json"));
            self.config = config;
        }
        self
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder's weights as a part; without weights: new ones.
    pub fn part(&self, seed: u64) -> Result<Part<'_>, ImportError> {
        match &self.weights {
            Some(weights) => decoder_part(&self.config, weights, catalog(weights, |name| Some(name.to_owned()))),
            None => Ok(Part::random(decoder_tensors(&self.config), seed)),
        }
    }
}

/// What ends a text and begins one. WordPiece has `[SEP]` and `[CLS]`, whatever a configuration says (its numbers are often those of another
/// vocabulary).
fn endings(
    generation: Option<serde_json::Value>,
    config: Option<serde_json::Value>,
    decoder: &DecoderConfig,
    vocabulary: &Vocabulary,
) -> Result<Endings, ImportError> {
    if matches!(vocabulary, Vocabulary::WordPiece { .. }) {
        return Ok(Endings::default());
    }
    let ids = |value: Option<&serde_json::Value>| -> Vec<u32> {
        let list = value.map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()])).unwrap_or_default();
        list.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    };
    let key = |name: &str| {
        let said = [&generation, &config].into_iter().flatten().flat_map(|json| ids(json.get(name)));
        let default = match (decoder, name) {
            (DecoderConfig::Gpt2(config), "eos_token_id") => config.eos_token_id,
            (DecoderConfig::Gpt2(config), _) => config.bos_token_id,
            (DecoderConfig::Llama(config), "eos_token_id") => config.eos_token_id,
            (DecoderConfig::Llama(_), _) => None,
        };
        let mut found: Vec<u32> = vec![];
        for id in said {
            if !found.contains(&id) {
                found.push(id);
            }
        }
        if found.is_empty() { default.into_iter().collect() } else { found }
    };
    Ok(Endings { stop_token: None, eos_token_ids: key("eos_token_id"), bos_token_id: key("bos_token_id").first().copied() })
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

/// Where the output is computed from: GPT2's weights say whether that is the embedding or a head of its own, whatever the configuration says.
pub(super) fn with_head(config: &DecoderConfig, source: &WeightSource, catalog: &Catalog) -> Result<DecoderConfig, ImportError> {
    let DecoderConfig::Gpt2(gpt2) = config else { return Ok(config.clone()) };
    let find = |names: [&str; 2]| names.into_iter().find_map(|name| catalog.get(name)?.stored_name());
    let head = find(["lm_head.weight", "transformer.lm_head.weight"]);
    let tie_word_embeddings = match (head, find(["transformer.wte.weight", "wte.weight"])) {
        (Some(head), Some(embeddings)) => source.same(head, embeddings)?,
        _ => true,
    };
    Ok(DecoderConfig::Gpt2(Gpt2Config { tie_word_embeddings, ..gpt2.clone() }))
}

/// A decoder's part from a catalog of names of one source, with the family's scope in front of them or without.
pub(super) fn decoder_part<'a>(
    config: &DecoderConfig,
    source: &'a WeightSource,
    mut catalog: Catalog<'a>,
) -> Result<Part<'a>, ImportError> {
    let family = architecture(config);
    let embedding = format!("{}.weight", family.embedding());
    let scope = format!("{}.", family.scope());
    // A model saved without its head has bare names.
    if embedding.strip_prefix(&scope).is_some_and(|bare| catalog.contains_key(bare)) {
        let scoped = |name: String| if name.starts_with("lm_head.") { name } else { format!("{scope}{name}") };
        catalog = catalog.into_iter().map(|(name, content)| (scoped(name), content)).collect();
    }
    // Causal masks and rotations that older releases stored with the weights.
    let is_buffer =
        |name: &str| [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"].iter().any(|end| name.ends_with(end));
    catalog.retain(|name, _| !is_buffer(name));
    if family.head() == family.embedding() {
        let head = catalog.remove("lm_head.weight").or_else(|| catalog.remove(&format!("{scope}lm_head.weight")));
        if let (Some(head), Some(embeddings)) = (head, catalog.get(&embedding))
            && let (Some(head), Some(embeddings)) = (head.stored_name(), embeddings.stored_name())
            && !source.same(head, embeddings)?
        {
            let problem = format!("{head} differs from {embeddings}, and config.json says tie_word_embeddings");
            return Err(ImportError::unusable(source.path(), problem));
        }
    }
    let what = match config {
        DecoderConfig::Gpt2(_) => "this GPT2".to_string(),
        DecoderConfig::Llama(config) => format!("this {}", config.model_type),
    };
    match_part(&what, source.path().into(), &decoder_tensors(config), catalog)
}

impl From<TextError> for ImportError {
    fn from(error: TextError) -> Self {
        Self::Text(error)
    }
}
