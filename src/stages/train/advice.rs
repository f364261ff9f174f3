//! What settings will do, told before they do it for hours.

use super::settings::Recipe;
use crate::models::Bundle;
use crate::pipeline::Reporter;
use crate::training::corpus::Captions;
use crate::training::objective::Objective;
use crate::training::schedule::Schedule;

/// `12%`, or `0.4%`.
pub fn percent(part: u64, whole: u64) -> String {
    let share = part as f64 / whole.max(1) as f64 * 100.0;
    if share >= 1.0 || part == 0 { format!("{share:.0}%") } else { format!("{share:.1}%") }
}

/// Warns of a learning rate that does little, or nothing.
pub fn on_schedule(recipe: &Recipe, schedule: &Schedule, reporter: &dyn Reporter) {
    let Schedule { peak, warmup_steps, total_steps, .. } = *schedule;
    if peak == 0.0 {
        reporter.warn("--lr 0: nothing will be learned");
    } else if warmup_steps >= total_steps {
        reporter.warn(&format!(
            "--warmup-steps {warmup_steps}: the run ends after {total_steps} steps, before the learning rate has reached {peak}"
        ));
    } else if recipe.warmup_steps.is_some() && warmup_steps.saturating_mul(4) > total_steps {
        reporter.warn(&format!(
            "--warmup-steps {warmup_steps}: the learning rate is still rising for {} of the run; a tenth is usual",
            percent(warmup_steps, total_steps)
        ));
    }
}

/// Warns of captions that are cut: their ends are not learned, nor when to stop.
pub fn on_length(recipe: &Recipe, bundle: &Bundle, train: &Captions, reporter: &dyn Reporter) {
    // Captions of the other objectives end with [SEP] wherever they are cut.
    if recipe.objective != Objective::Caption {
        return;
    }
    let Ok(tokenizer) = bundle.tokenizer() else { return };
    let room = recipe.max_tokens(bundle);
    let is_cut = |ids: &[u32]| ids.len() >= room && ids.last() != Some(&tokenizer.end_id());
    let cut = (0..train.len()).filter(|&caption| is_cut(train.ids(caption))).count() as u64;
    let all = train.len() as u64;
    if cut * 100 <= all {
        return;
    }
    let most = if cut * 2 > all { ", and so is the median caption" } else { "" };
    let given = recipe.max_len.map_or(String::new(), |max_len| format!("--max-len {max_len}: "));
    reporter.warn(&format!(
        "{given}{} of the captions ({cut}) are longer than {room} tokens with [SEP] and are cut{most}: the model does not learn to end them",
        percent(cut, all)
    ));
}
