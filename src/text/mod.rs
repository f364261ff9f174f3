//! Text on both sides of the model: ids (WordPiece or BPE), pieces back to readable text, and tokens for counting and scoring.

mod bpe;
pub mod clean;
mod clip_bpe;
mod detokenize;
mod error;
mod files;
pub mod han;
pub mod segment;
mod tokenizer;
mod vocabulary;
mod wordpiece;

pub use clip_bpe::ClipTokenizer;
pub use detokenize::join_pieces;
pub use error::TextError;
pub use files::Vocabulary;
pub use tokenizer::{Endings, Tokenizer};
