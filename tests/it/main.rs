//! Every integration test, in one binary: it links once.

mod caption;
mod caption_stage;
mod common;
mod devices;
mod embed_stage;
mod evaluate;
mod families;
mod finished;
mod house;
mod image_speed;
mod images;
mod jobs_cli;
mod listing;
mod manual;
mod model_import;
mod objectives;
mod pipeline;
mod prepare;
mod rehearsal;
mod report;
mod report_page;
mod scenes;
mod stage_cli;
mod stats;
mod train;
mod train_resume;
