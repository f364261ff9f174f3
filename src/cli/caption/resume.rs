//! Flags of what happens to earlier work and to failures.

/// What happens to earlier work and to failures.
#[derive(clap::Args)]
pub(in crate::cli) struct ResumeArgs {
    /// Overwrite the output and start over (if interrupted, the same command resumes)
    #[arg(long, help_heading = "Running")]
    pub overwrite: bool,
    /// Keep the work folder after success, so that a rerun skips unchanged files without reading them
    #[arg(long, alias = "keep_work", help_heading = "Running")]
    pub keep_work: bool,
    /// Drop the results of images that are no longer found. Without this flag, a run that reads other folders than before, or that would
    /// drop more than a tenth of the results, is refused
    #[arg(long, help_heading = "Running")]
    pub prune: bool,
    /// With --overwrite: still refuse what --prune allows (a pipeline overwrites by itself)
    #[arg(long, hide = true, requires = "overwrite")]
    pub guarded: bool,
    /// Retry images that failed before an interruption (a finished run's failures are always retried)
    #[arg(long, alias = "retry_failed", help_heading = "Running")]
    pub retry_failed: bool,
    /// Exit with status 1 if more than this share of the images failed
    #[arg(long, value_name = "SHARE", alias = "max_error_rate", default_value_t = 1.0, value_parser = share, help_heading = "Running")]
    pub max_error_rate: f64,
}

impl ResumeArgs {
    /// Whoever overwrites says that what is there may go.
    pub(in crate::cli) fn may_drop(&self) -> bool {
        self.prune || self.overwrite && !self.guarded
    }
}

/// A number from 0 to 1.
pub(in crate::cli) fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| format!("{text:?} is not a share: use 0 to 1"))
}
