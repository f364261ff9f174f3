//! Training: parameters in one piece of memory, batches from a corpus, AdamW, and checkpoints that resume to the byte.

pub(crate) mod artifacts;
#[cfg(test)]
mod artifacts_tests;
pub(crate) mod batches;
pub(crate) mod checkpoint;
mod contrastive;
pub(crate) mod corpus;
pub(crate) mod dropout;
pub(crate) mod host;
pub(crate) mod lora;
mod loss;
#[cfg(test)]
mod loss_tests;
pub(crate) mod metrics;
pub(crate) mod objective;
#[cfg(test)]
mod objective_tests;
pub(crate) mod optimizer;
pub(crate) mod optimizer_graph;
pub(crate) mod parameters;
pub(crate) mod resident;
pub(crate) mod schedule;
pub(crate) mod tensorboard;
pub(crate) mod trainer;

pub use artifacts::{Network, Trained};
pub use batches::Batch;
pub use dropout::DropoutKey;
pub use host::{HostBackend, Options};
pub use objective::Objective;
pub use trainer::Backend;

#[cfg(test)]
mod families_tests;
#[cfg(test)]
mod host_tests;
