//! clipcap: image-caption datasets, CLIP embeddings, ClipCap training and caption tables on ONNX Runtime.
//!
//! The house has floors; a module imports only from floors below its own (`tests/it/house.rs` keeps it so):
//!
//! ```text
//! 6  cli, terminal                parse the command line; own stdout and stderr
//! 5  stages/                      one file a command: settings in, outcome out
//! 4  pipeline/                    an output's life, jobs, pipelines in TOML, ordered channels
//! 3  generation/  training/       captions from a decoder | parameters from a dataset
//! 2  models/                      CLIP, mappers, GPT2 as graphs; weights and importers; bundles
//! 1  autodiff/                    reverse-mode differentiation over a graph
//! 0  onnx/ runtime/ dataset/ image/ text/ metrics/ html/     know nothing of each other
//!    files, table, bookkeeping, budget, random, vector, names    atomic files, Parquet, what lies beside an output, seeded numbers: the ground
//! ```

#[cfg(not(unix))]
compile_error!("clipcap is written for Linux: file locks, inodes and signals are Unix's");

#[macro_use]
pub(crate) mod names;

pub(crate) mod autodiff;
pub(crate) mod bookkeeping;
pub(crate) mod budget;
pub mod cli;
pub mod dataset;
pub mod files;
pub mod generation;
pub(crate) mod html;
pub mod image;
pub(crate) mod metrics;
pub mod models;
pub(crate) mod onnx;
pub mod pipeline;
pub(crate) mod random;
// Without the feature its stand-in answers for everything, and much of it is not asked.
#[cfg_attr(not(feature = "remote"), allow(dead_code, unused_imports))]
pub(crate) mod remote;
pub mod runtime;
pub mod stages;
pub mod table;
pub(crate) mod terminal;
#[cfg(test)]
pub mod testing;
pub(crate) mod text;
pub mod training;
pub(crate) mod vector;
