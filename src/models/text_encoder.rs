//! Captions to embeddings: the text towers of CLIP and Chinese-CLIP, and the tokenizers they were trained with.
//!
//! B captions, T tokens, C width, D length of an embedding.

use std::path::Path;

use super::clip;
use super::config::{BertConfig, ClipConfig, ConfigError, TextConfig, read_json, read_text};
use super::encoder::{LoadError, style_for};
use super::graphs::{GraphKind, build};
use super::layers::{Style, layer_norm, linear, masked, parameter};
use super::mapper::bert_layer;
use crate::onnx::{DType, Graph, Value};
use crate::runtime::{Device, Feed, Runtime, RuntimeError, Session};
use crate::text::{ClipTokenizer, TextError, Tokenizer};

/// `caption_ids` [batch, tokens] (int64) and `caption_lengths` [batch] (int64: a caption's tokens; what stands behind them is not seen) ->
/// `text_embeds` [batch, D], projected and not normalized.
pub fn text_encoder(g: &Graph, style: Style, config: &ClipConfig) {
    let ids = g.input("caption_ids", DType::I64, &["batch".into(), "tokens".into()]);
    let lengths = g.input("caption_lengths", DType::I64, &["batch".into()]);
    let embeds = match &config.text_config {
        Some(TextConfig::Clip(text)) => {
            // The rows of the last tokens in the flattened states.
            let starts = g.mul(g.range(&"batch".into()), g.reshape(g.dim(&"tokens".into()), &[]));
            let ends = g.add(starts, g.sub(lengths, g.scalar_like(lengths, 1.0)));
            clip::text_embeds(g, style, config, text, ids, ends)
        }
        Some(TextConfig::Bert(bert)) => bert_embeds(g, style, config, bert, ids, lengths),
        None => {
            g.fail("there is no text tower");
            g.cast(ids, DType::F32)
        }
    };
    g.output("text_embeds", g.cast(embeds, DType::F32));
}

/// Chinese-CLIP's: a BERT, whose state at the first position is projected.
fn bert_embeds(g: &Graph, style: Style, config: &ClipConfig, bert: &BertConfig, ids: Value, lengths: Value) -> Value {
    let width = bert.hidden_size;
    let [batch, tokens] = &g.shape(ids)[..] else {
        g.fail("token ids are [B, T]");
        return ids;
    };
    let pooled = g.scope("text_model", || {
        let mut x = g.scope("embeddings", || {
            let words = g.parameter("word_embeddings.weight", &[bert.vocab_size.into(), width.into()]);
            let positions = parameter(g, style, "position_embeddings.weight", &[bert.max_position_embeddings, width]);
            let positions = g.slice(positions, 0, 0.into(), tokens.clone());
            let types = parameter(g, style, "token_type_embeddings.weight", &[bert.type_vocab_size, width]);
            let first = g.slice(types, 0, 0.into(), 1.into());
            let x = g.add(g.cast(g.gather(words, ids, 0), style.dtype), g.add(positions, first));
            layer_norm(g, style, "LayerNorm", x, width, bert.layer_norm_eps)
        });
        let places = g.reshape(g.range(tokens), &[1.into(), tokens.clone()]);
        let seen = g.less(places, g.reshape(lengths, &[batch.clone(), 1.into()]));
        let bias = g.select(seen, g.cast(g.floats(&[0.0], &[]), style.dtype), masked(g, style));
        let bias = g.reshape(bias, &[batch.clone(), 1.into(), 1.into(), tokens.clone()]);
        for layer in 0..bert.num_hidden_layers {
            x = g.scope(&format!("encoder.layer.{layer}"), || bert_layer(g, style, bert, x, Some(bias), None));
        }
        g.reshape(g.slice(x, 1, 0.into(), 1.into()), &[batch.clone(), width.into()])
    });
    linear(g, style, "text_projection", pooled, width, config.projection_dim, false)
}

/// Why a CLIP folder cannot read captions.
#[derive(Debug, thiserror::Error)]
pub enum ReaderError {
    #[error("{}: {problem}", path.display())]
    Unusable { path: std::path::PathBuf, problem: String },
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// From a caption to the ids its text tower takes.
pub struct CaptionReader {
    kind: ReaderKind,
    max_tokens: usize,
}

enum ReaderKind {
    Bpe(Box<ClipTokenizer>),
    WordPiece { tokenizer: Box<Tokenizer>, begin: u32, end: u32 },
}

impl CaptionReader {
    /// The reader of the tokenizer that lies in a CLIP's folder. `own` is a bundle's own vocabulary with its letter case: a text tower that was
    /// trained here reads that.
    pub fn open(folder: &Path, config: &ClipConfig, own: Option<(&Path, bool)>) -> Result<Self, ReaderError> {
        let unusable = |problem: String| ReaderError::Unusable { path: folder.into(), problem };
        let word_piece = |path: &Path, lower_case: bool| -> Result<ReaderKind, ReaderError> {
            let tokenizer = Tokenizer::open(path, lower_case)?;
            let begin = tokenizer.bert_ids()[1].ok_or_else(|| unusable("its vocab.txt lacks [CLS]".into()))?;
            let end = tokenizer.end_id();
            Ok(ReaderKind::WordPiece { tokenizer: Box::new(tokenizer), begin, end })
        };
        let (kind, max_tokens, vocab_size) = match &config.text_config {
            None => {
                return Err(unusable(
                    "there is no text tower here that is understood, so captions cannot be scored with it".into(),
                ));
            }
            Some(TextConfig::Bert(bert)) => {
                let path = folder.join("vocab.txt");
                if !path.is_file() {
                    return Err(unusable("vocab.txt is missing: the text tower's captions cannot be read without it".into()));
                }
                (word_piece(&path, said_lower_case(folder)?)?, bert.max_position_embeddings, bert.vocab_size)
            }
            Some(TextConfig::Clip(text)) => {
                let [vocabulary, merges] = ["vocab.json", "merges.txt"].map(|name| folder.join(name));
                let kind = match (vocabulary.is_file() && merges.is_file(), own) {
                    (true, _) => {
                        let tokenizer = ClipTokenizer::new(&read_text(&vocabulary)?, &read_text(&merges)?, folder)?;
                        ReaderKind::Bpe(Box::new(tokenizer))
                    }
                    (false, Some((path, lower_case))) if path.is_file() => word_piece(path, lower_case)?,
                    _ => {
                        return Err(unusable(
                            "vocab.json and merges.txt are missing: put CLIP's own beside it, or give a Hugging Face folder"
                                .into(),
                        ));
                    }
                };
                if let ReaderKind::WordPiece { end, .. } = &kind
                    && text.eos_token_id != Some(*end)
                {
                    return Err(unusable(
                        "vocab.json and merges.txt are missing, and its text tower does not read the bundle's own vocabulary"
                            .into(),
                    ));
                }
                (kind, text.max_position_embeddings, text.vocab_size)
            }
        };
        let reader = Self { kind, max_tokens };
        let largest = match &reader.kind {
            ReaderKind::Bpe(tokenizer) => tokenizer.vocab_size(),
            ReaderKind::WordPiece { tokenizer, .. } => tokenizer.vocab_size(),
        };
        if largest > vocab_size {
            return Err(unusable(format!(
                "its tokenizer has {largest} entries and its text tower {vocab_size}: they do not belong together"
            )));
        }
        Ok(reader)
    }

    /// Tokens that the tower takes, with those around a caption.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// A caption's ids, with what stands around it; cut to what the tower takes, and whether it was.
    ///
    /// # Errors
    /// Where the tokenizer fails.
    pub fn read(&self, caption: &str) -> Result<(Vec<u32>, bool), TextError> {
        let mut ids = match &self.kind {
            ReaderKind::Bpe(tokenizer) => tokenizer.encode(caption, usize::MAX)?,
            ReaderKind::WordPiece { tokenizer, begin, end } => {
                std::iter::once(*begin).chain(tokenizer.encode(caption)?).chain([*end]).collect()
            }
        };
        let most = self.max_tokens.max(2);
        let is_cut = ids.len() > most;
        if let (true, Some(&end)) = (is_cut, ids.last()) {
            // A caption that is cut still ends.
            ids.truncate(most - 1);
            ids.push(end);
        }
        Ok((ids, is_cut))
    }
}

/// BERT's tokenizer puts text into lower case unless its configuration says otherwise.
fn said_lower_case(folder: &Path) -> Result<bool, ConfigError> {
    let path = folder.join("tokenizer_config.json");
    if !path.is_file() {
        return Ok(true);
    }
    let config: serde_json::Value = read_json(&path)?;
    Ok(config.get("do_lower_case").and_then(serde_json::Value::as_bool).unwrap_or(true))
}

/// A text tower on a device.
pub struct TextEncoder {
    session: Session,
    embedding_dim: usize,
    max_batch: usize,
    max_tokens: usize,
    /// OpenVINO wants one fixed shape.
    fixed: bool,
}

impl TextEncoder {
    /// Loads the text tower of the CLIP whose weights lie under `folder`, as in a bundle. It has no 8-bit weights and computes without.
    pub fn load(runtime: &Runtime, folder: &Path, config: &ClipConfig, max_batch: usize) -> Result<Self, LoadError> {
        let style = Style { int8: false, ..style_for(runtime) };
        let model = build(folder, GraphKind::TextEncoder(config), style)?;
        let max_tokens = match &config.text_config {
            Some(TextConfig::Clip(text)) => text.max_position_embeddings,
            // Captions are short, and a fixed shape costs its whole length.
            Some(TextConfig::Bert(bert)) => bert.max_position_embeddings.min(128),
            None => 1,
        };
        let fixed = runtime.device() == Device::OpenVino;
        let dimensions = [("batch", max_batch as i64), ("tokens", max_tokens as i64)];
        let dimensions = if fixed { &dimensions[..] } else { &[] };
        let session = Session::new(runtime, "text_encoder", &model.to_bytes(), folder, dimensions)?;
        Ok(Self { session, embedding_dim: config.projection_dim, max_batch: max_batch.max(1), max_tokens, fixed })
    }

    /// The ids of captions -> embeddings [captions, D], projected and not normalized.
    pub fn encode(&mut self, captions: &[Vec<u32>]) -> Result<Vec<f32>, RuntimeError> {
        let mut embeddings = Vec::with_capacity(captions.len() * self.embedding_dim);
        for chunk in captions.chunks(self.max_batch) {
            let longest = chunk.iter().map(Vec::len).max().unwrap_or(0).max(1);
            let (rows, tokens) = if self.fixed { (self.max_batch, self.max_tokens) } else { (chunk.len(), longest) };
            let mut ids = vec![0i64; rows * tokens];
            let mut lengths = vec![1i64; rows];
            for (row, caption) in chunk.iter().enumerate() {
                let count = caption.len().clamp(1, tokens);
                lengths[row] = count as i64;
                for (place, id) in ids[row * tokens..].iter_mut().zip(&caption[..count.min(caption.len())]) {
                    *place = i64::from(*id);
                }
                // A caption that is cut still ends.
                if let Some(&last) = caption.last() {
                    ids[row * tokens + count - 1] = i64::from(last);
                }
            }
            let (ids_shape, lengths_shape) = ([rows as i64, tokens as i64], [rows as i64]);
            let feeds = [("caption_ids", Feed::I64(&ids, &ids_shape)), ("caption_lengths", Feed::I64(&lengths, &lengths_shape))];
            let outputs = self.session.run(&feeds)?;
            embeddings.extend_from_slice(&outputs.f32("text_embeds")?[..chunk.len() * self.embedding_dim]);
        }
        Ok(embeddings)
    }
}
