//! Dimensions as polynomials over symbols, so that `batch * (prefix + tokens)` can be compared exactly.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Mul, Sub};

/// A dimension: a whole number, a symbol, or sums and products of them. Two are equal exactly when they are equal for every value of
/// the symbols.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(BTreeMap<Vec<String>, i64>);

/// The dimensions of a tensor, outermost first.
pub type Shape = Vec<Dim>;

impl Dim {
    /// The number, where no symbol is left.
    pub fn as_fixed(&self) -> Option<i64> {
        match self.0.len() {
            0 => Some(0),
            1 => self.0.get([].as_slice() as &[String]).copied(),
            _ => None,
        }
    }

    /// The symbol, where the dimension is a symbol alone.
    pub fn as_symbol(&self) -> Option<&str> {
        match self.0.iter().next() {
            Some((symbols, 1)) if self.0.len() == 1 && symbols.len() == 1 => Some(&symbols[0]),
            _ => None,
        }
    }

    /// Products of symbols with their factors.
    pub(super) fn terms(&self) -> impl Iterator<Item = (&[String], i64)> {
        self.0.iter().map(|(symbols, factor)| (symbols.as_slice(), *factor))
    }

    /// The product of dimensions.
    pub fn product(dims: &[Dim]) -> Dim {
        dims.iter().fold(Dim::from(1), |a, b| a * b.clone())
    }

    /// The same dimension with `symbol` replaced by a number.
    pub fn with(&self, symbol: &str, value: i64) -> Dim {
        self.0.iter().fold(Dim::from(0), |sum, (symbols, factor)| {
            let term = symbols.iter().fold(Dim::from(*factor), |product, s| {
                product * if s == symbol { Dim::from(value) } else { Dim::from(s.as_str()) }
            });
            sum + term
        })
    }
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Self(if value == 0 { BTreeMap::new() } else { BTreeMap::from([(vec![], value)]) })
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        Self::from(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<i32> for Dim {
    fn from(value: i32) -> Self {
        Self::from(i64::from(value))
    }
}

impl From<&str> for Dim {
    fn from(symbol: &str) -> Self {
        Self(BTreeMap::from([(vec![symbol.to_string()], 1)]))
    }
}

impl Add for Dim {
    type Output = Dim;

    fn add(mut self, other: Dim) -> Dim {
        for (symbols, factor) in other.0 {
            *self.0.entry(symbols).or_insert(0) += factor;
        }
        self.0.retain(|_, factor| *factor != 0);
        self
    }
}

impl Sub for Dim {
    type Output = Dim;

    fn sub(self, other: Dim) -> Dim {
        self + other * Dim::from(-1)
    }
}

impl Mul for Dim {
    type Output = Dim;

    fn mul(self, other: Dim) -> Dim {
        let mut product = BTreeMap::new();
        for (a, m) in &self.0 {
            for (b, n) in &other.0 {
                let mut symbols = [a.as_slice(), b].concat();
                symbols.sort();
                *product.entry(symbols).or_insert(0) += m * n;
            }
        }
        product.retain(|_, factor| *factor != 0);
        Dim(product)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("0");
        }
        // Numbers last: `batch*tokens + 10`.
        for (i, (symbols, factor)) in self.0.iter().rev().enumerate() {
            if i > 0 {
                f.write_str(" + ")?;
            }
            match (symbols.is_empty(), factor) {
                (true, n) => write!(f, "{n}")?,
                (false, 1) => f.write_str(&symbols.join("*"))?,
                (false, n) => write!(f, "{n}*{}", symbols.join("*"))?,
            }
        }
        Ok(())
    }
}

/// `[batch, 3, 224]`.
pub fn shape_text(shape: &[Dim]) -> String {
    format!("[{}]", shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dims_compare_as_polynomials() {
        let (b, t) = (Dim::from("batch"), Dim::from("tokens"));
        let left = b.clone() * (t.clone() + 10.into());
        let right = t.clone() * b.clone() + b.clone() * 10.into();
        assert_eq!(left, right);
        assert_eq!(left.to_string(), "batch*tokens + 10*batch");
        assert_eq!((t.clone() - t.clone()).as_fixed(), Some(0));
        assert_eq!((t.clone() + 1.into() - t.clone()).as_fixed(), Some(1));
        assert_eq!(b.as_symbol(), Some("batch"));
        assert_eq!(left.as_symbol(), None);
        assert_eq!(left.with("batch", 2).with("tokens", 5).as_fixed(), Some(30));
        assert_eq!(Dim::product(&[2.into(), 3.into()]).as_fixed(), Some(6));
    }
}
