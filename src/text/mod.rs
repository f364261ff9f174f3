//! Text on both sides of the model: WordPiece ids, pieces back to readable text, and tokens for counting and scoring.

mod detokenize;
mod error;
pub mod han;
pub mod segment;
mod tokenizer;
mod vocabulary;

pub use detokenize::join_pieces;
pub use error::TextError;
pub use tokenizer::Tokenizer;
