//! Conditions on the rows of a table.

use anyhow::{Context, Result, bail};
use polars::prelude::{BooleanChunked, DataFrame, DataType as PolarsType};

/// A condition on a column.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    pub column: String,
    pub test: Test,
    pub value: String,
}

/// `=` and `!=` compare numbers as numbers; `<` and `>` want a column of numbers; `~` is text that contains the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    Equal,
    NotEqual,
    Less,
    Greater,
    Contains,
}

impl std::str::FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.find(['=', '!', '<', '>', '~']).filter(|&at| at > 0);
        let found = at.and_then(|at| {
            let tests =
                [("!=", Test::NotEqual), ("=", Test::Equal), ("<", Test::Less), (">", Test::Greater), ("~", Test::Contains)];
            tests.iter().find_map(|(sign, test)| Some((&text[..at], *test, text[at..].strip_prefix(sign)?)))
        });
        let (column, test, value) =
            found.ok_or_else(|| format!("{text}: COLUMN=VALUE is wanted (or !=, <, >, ~ for contains)"))?;
        Ok(Self { column: column.into(), test, value: value.into() })
    }
}

impl Filter {
    /// Which rows pass. A null cell is like one without text: `COLUMN=` finds it, and `COLUMN!=` all others.
    pub fn mask(&self, frame: &DataFrame) -> Result<BooleanChunked> {
        let series = frame.column(&self.column)?.as_materialized_series();
        let is_text = *series.dtype() == PolarsType::String;
        if is_text && matches!(self.test, Test::Less | Test::Greater) {
            bail!("{} holds text: < and > compare numbers", self.column);
        }
        let is_test_of_null = self.value.is_empty() && matches!(self.test, Test::Equal | Test::NotEqual);
        if !is_text && series.dtype().is_numeric() && self.test != Test::Contains && !is_test_of_null {
            let value: f64 =
                self.value.parse().ok().with_context(|| format!("{} holds numbers, and {} is none", self.column, self.value))?;
            let test = |cell: Option<f64>| match self.test {
                Test::Equal => cell == Some(value),
                Test::NotEqual => cell != Some(value),
                Test::Less => cell.is_some_and(|cell| cell < value),
                _ => cell.is_some_and(|cell| cell > value),
            };
            return Ok(series.cast(&PolarsType::Float64)?.f64()?.iter().map(test).collect());
        }
        let test = |cell: Option<&str>| match self.test {
            Test::NotEqual => cell.unwrap_or_default() != self.value,
            Test::Contains => cell.is_some_and(|cell| cell.contains(&self.value)),
            _ => cell.unwrap_or_default() == self.value,
        };
        Ok(series.cast(&PolarsType::String)?.str()?.iter().map(test).collect())
    }
}
