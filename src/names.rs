//! Names of an enum's cases: one table for flags, files and messages.

/// Gives an enum `ALL`, `name`, `FromStr` and `Display`. What is said where no case has the name: `"fp4" is not a precision: use fp32 or int8`.
macro_rules! named {
    ($type:ident, $what:literal, $($case:ident = $name:literal),+ $(,)?) => {
        impl $type {
            /// Every case.
            pub const ALL: &[Self] = &[$(Self::$case),+];

            /// As flags, files and messages have it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$case => $name),+
                }
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().find(|case| case.name() == text);
                found.copied().ok_or_else(|| format!("{text:?} is not {}: use {}", $what, $crate::names::either(&[$($name),+])))
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

/// `a, b or c`.
pub fn either(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_string(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Size {
        Small,
        Large,
        Huge,
    }

    named!(Size, "a size", Small = "s", Large = "l", Huge = "xl");

    #[test]
    fn names_are_read_as_they_are_written() {
        for size in Size::ALL {
            assert_eq!(size.to_string().parse(), Ok(*size));
        }
        assert_eq!("m".parse::<Size>().unwrap_err(), "\"m\" is not a size: use s, l or xl");
    }
}
