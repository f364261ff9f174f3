//! A run as a page: curves, and sample captions beside what people wrote, as they changed.

use super::logs::Shown;
use super::settings::{BestBy, Recipe};
use crate::html::chart::{Line, lines, number, thousands};
use crate::html::{Page, Table};
use crate::training::metrics::Metrics;

/// Evaluations whose captions are shown of each image.
const EVALUATIONS: usize = 12;

/// `index.html` of a run, after so many of its steps.
pub fn render(recipe: &Recipe, total_steps: u64, rows: &[Metrics], shown: &[Shown]) -> String {
    let last = |get: fn(&Metrics) -> Option<f64>| rows.iter().rev().find_map(get);
    let best = |get: fn(&Metrics) -> Option<f64>, better: fn(f64, f64) -> f64| rows.iter().filter_map(get).reduce(better);
    let steps = rows.last().map_or(0, |row| row.step);
    let mut facts = vec![("steps", format!("{} of {}", thousands(steps), thousands(total_steps)))];
    let mut add = |name: &'static str, value: Option<f64>| facts.extend(value.map(|value| (name, format!("{value:.4}"))));
    add("best dev loss", best(|row| row.dev_loss, f64::min));
    add("best dev CIDEr", best(|row| row.dev_cider, f64::max));
    add("last dev loss", last(|row| row.dev_loss));
    add("last dev CIDEr", last(|row| row.dev_cider));
    add("last reward", last(|row| row.reward));
    let by = match recipe.best_by() {
        BestBy::Loss => "the lowest dev loss",
        BestBy::Cider => "the highest dev CIDEr",
    };
    let subtitle = format!("Objective {}; best/ is the model with {by}.", recipe.objective);
    let page = Page::new("Training", &subtitle).facts(&facts).heading("Curves").panels(&curves(rows));
    captions(page.heading("Captions of dev images as they changed"), shown).finish()
}

fn curves(rows: &[Metrics]) -> Vec<(String, String)> {
    let points = |get: fn(&Metrics) -> Option<f64>| -> Vec<(f64, f64)> {
        rows.iter().filter_map(|row| Some((row.step as f64, get(row).filter(|value| value.is_finite())?))).collect()
    };
    let line = |name: &str, points: Vec<(f64, f64)>| Line { name: name.into(), points: super::curve::thin(&points) };
    let mut panels = vec![];
    let mut panel = |title: &str, y: &str, all: Vec<Line>| {
        if all.iter().any(|line| !line.points.is_empty()) {
            panels.push((title.to_string(), lines(&all, "optimizer steps", y)));
        }
    };
    let is_scst = rows.iter().any(|row| row.reward.is_some());
    // The surrogate's value says nothing: its gradient is what counts.
    let train = if is_scst { vec![] } else { points(|row| row.train_loss) };
    panel("Loss", "loss per token (nats)", vec![line("train", train), line("dev", points(|row| row.dev_loss))]);
    panel("CIDEr of greedy captions of dev images", "CIDEr", vec![line("dev", points(|row| row.dev_cider))]);
    let reward = vec![line("mean of the samples", points(|row| row.reward)), line("spread", points(|row| row.reward_spread))];
    panel("Reward: CIDEr of sampled captions of training images", "CIDEr", reward);
    panel("Learning rate", "learning rate", vec![line("learning rate", points(|row| row.learning_rate))]);
    panels
}

fn captions(mut page: Page, shown: &[Shown]) -> Page {
    let Some(last) = shown.last() else { return page.paragraph("No evaluation yet.") };
    let skip = shown.len().div_ceil(EVALUATIONS).max(1);
    // The last, and others evenly before it.
    let chosen: Vec<&Shown> = shown.iter().rev().step_by(skip).collect();
    for (at, sample) in last.samples.iter().enumerate() {
        let mut table = Table::new(&["#step", "caption", "#CIDEr of all"]);
        for shown in &chosen {
            let caption = shown.samples.get(at).map_or(String::new(), |sample| sample.caption.clone());
            table.row(vec![thousands(shown.step), caption, shown.dev_cider.map_or(String::new(), number)]);
        }
        let mut wrote = Table::new(&["what people wrote"]);
        sample.references.iter().for_each(|text| wrote.row(vec![text.clone()]));
        page = page.panels(&[(sample.image_id.clone(), table.to_html() + &wrote.to_html())]);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::train::samples::Sample;

    #[test]
    fn the_page_has_curves_and_captions_and_no_markup_of_theirs() {
        let rows: Vec<Metrics> = (1..=50)
            .map(|step| Metrics {
                step,
                train_loss: Some(5.0 / step as f64),
                dev_loss: step.is_multiple_of(10).then_some(1.0 + 1.0 / step as f64),
                dev_cider: step.is_multiple_of(10).then_some(step as f64 / 100.0),
                ..Metrics::default()
            })
            .collect();
        let sample =
            |caption: &str| Sample { image_id: "<a>".into(), caption: caption.into(), references: vec!["一只<狗>".into()] };
        let shown = |step, caption: &str| Shown { step, dev_cider: Some(0.5), samples: vec![sample(caption)] };
        let recipe: Recipe = toml::from_str(RECIPE).unwrap();
        let page = render(&recipe, 100, &rows, &[shown(10, "<b>"), shown(50, "一只狗")]);
        for text in ["50 of 100", "0.5000", "&lt;a&gt;", "一只&lt;狗&gt;", "&lt;b&gt;", "<polyline", "the lowest dev loss"] {
            assert!(page.contains(text), "{text}");
        }
        assert!(!page.contains("<b>&lt;") && !page.contains("Reward"));
        let scst = Metrics { step: 1, reward: Some(0.5), train_loss: Some(-3.0), ..Metrics::default() };
        let page = render(&recipe, 100, &[scst], &[]);
        assert!(page.contains("Reward") && !page.contains("<h3>Loss") && page.contains("No evaluation yet"));
    }

    const RECIPE: &str = "finetune_gpt2 = false\nepochs = 1\nbatch_size = 4\ngradient_accumulation_steps = 1\nlearning_rate = 0.1\n\
        schedule = 'linear'\nweight_decay = 0.0\nno_decay_norm_bias = false\nbeta1 = 0.9\nbeta2 = 0.9\neps = 0.1\nlabel_smoothing = 0.0\n\
        normalize_prefix = false\nloss_on_padding = false\nseed = 0\n";
}
