#!/usr/bin/env python3
"""The work of `prepare`, `stats` and `evaluate` on tables as single expressions of polars, DuckDB and pandas; `data.py` runs them.

    data_peers.py WHO prepare OUT FILE...            lines of Flickr30k-CN into a sorted Parquet table
    data_peers.py WHO stats TABLE OUT                the tables that `stats --units char` writes, its pictures and page left out
    data_peers.py WHO evaluate PREDICTED REFERENCES  corpus BLEU-4 and CIDEr-D by characters (ROUGE-L, which `evaluate` has too, is no expression)
    data_peers.py WHO start                          nothing but the start

WHO is polars, duckdb or pandas (which does no `evaluate`). What is found goes to stdout as JSON, so that it can be compared.
"""

import json
import math
import pathlib
import sys

QUANTILES = {"q1": 0.25, "median": 0.5, "q3": 0.75, "p95": 0.95, "p99": 0.99}
TOKENS = "[\\x{4e00}-\\x{9fff}]|[a-z0-9]+"


def split_of(file):
    return next(split for split in ("train", "val", "test") if split in pathlib.Path(file).stem)


def scores(hits, totals, lengths, cider):
    """BLEU-4 from clipped n-grams and all of them, by n, and the lengths of hypotheses and of the nearest references."""
    precision = sum(math.log(hits[n] / totals[n]) for n in range(4)) / 4
    ours, theirs = lengths
    return {"bleu4": math.exp(precision + min(0.0, 1 - theirs / ours)), "cider": cider}


class Polars:
    def __init__(self):
        import polars

        self.pl = polars

    def prepare(self, out, *files):
        pl = self.pl
        key, rest = pl.col("line").str.splitn(" ", 2).struct.field("field_0"), pl.col("line").str.splitn(" ", 2).struct.field("field_1")
        read = lambda file: pl.scan_csv(
            file, has_header=False, separator="\x01", quote_char=None, new_columns=["line"], schema_overrides=[pl.String]
        ).with_columns(split=pl.lit(split_of(file)))
        lines = pl.concat([read(file) for file in files]).with_columns(key.str.splitn("#", 3).alias("key"), rest.alias("raw"))
        lines.select(
            image_id=pl.col("key").struct.field("field_0"),
            caption_id=pl.col("key").struct.field("field_2").cast(pl.Int32),
            caption=pl.when(pl.col("split") == "test").then(pl.col("raw").str.replace_all(":[^ ]*", "")).otherwise(pl.col("raw"))
            .str.replace_all(" ", "", literal=True),
            caption_raw=pl.col("raw"),
            split=pl.col("split"),
        ).sort("image_id", "caption_id").sink_parquet(out, compression="zstd")
        return {"captions": pl.scan_parquet(out).select(pl.len()).collect().item()}

    def stats(self, table, out):
        pl = self.pl
        out = pathlib.Path(out)
        out.mkdir(parents=True, exist_ok=True)
        captions = pl.scan_parquet(table).select("image_id", "caption", "split")
        length = pl.col("caption").str.len_chars()
        figures = [length.count().alias("count"), length.mean().alias("mean"), length.std().alias("std"), length.min().alias("min"),
                   length.max().alias("max")] + [length.quantile(q, "linear").alias(name) for name, q in QUANTILES.items()]
        often = lambda of: of.group_by("text").len().sort(["len", "text"], descending=[True, False])
        opening = lambda n: often(captions.filter(length >= n).select(text=pl.col("caption").str.slice(0, n))).head(50)
        pairs = captions.group_by("caption").agg(pl.len(), pl.col("image_id").n_unique(), pl.col("split").unique().sort().str.join(","))
        tables = pl.collect_all([
            captions.select(figures),
            captions.group_by("split").agg(figures),
            captions.group_by("split", length.alias("length")).len(),
            captions.group_by("image_id").len().group_by("len").agg(pl.len().alias("images")),
            often(captions.select(text=pl.col("caption").str.split("").explode()).filter(~pl.col("text").str.contains(r"^\s*$"))),
            opening(2),
            opening(4),
            pairs.filter(pl.col("len") > 1).sort(["len", "caption"], descending=[True, False]),
        ])
        for number, found in enumerate(tables):
            found.write_parquet(out / f"{number}.parquet", compression="zstd")
        return {"captions": tables[0]["count"][0], "mean": tables[0]["mean"][0], "repeated": int(tables[7]["len"].sum()),
                "opening": tables[5]["text"][0]}

    def evaluate(self, predicted, references):
        pl = self.pl
        read = lambda path: (
            pl.scan_parquet(path).select("image_id", tokens=pl.col("caption").str.to_lowercase().str.extract_all(TOKENS)).with_row_index("row")
        )
        hypotheses = read(predicted)
        texts = read(references).join(hypotheses.select("image_id"), on="image_id", how="semi")

        def grams(of):
            tokens = of.explode("tokens")
            # A run that reaches into the next row is null.
            parts = [pl.when(pl.col("row").shift(-n) == pl.col("row")).then(pl.col("tokens").shift(-n)) for n in range(4)]
            runs = [tokens.select("image_id", "row", n=pl.lit(n), gram=pl.concat_str(parts[: n + 1])) for n in range(4)]
            return pl.concat(runs).drop_nulls().group_by("image_id", "row", "n", "gram").len("tf")

        h, r = grams(hypotheses), grams(texts)
        images = hypotheses.select(pl.len().cast(pl.Float64).log().alias("all"))
        df = r.group_by("n", "gram").agg(pl.col("image_id").n_unique().alias("df"))
        weigh = lambda of: (
            of.join(df, on=["n", "gram"], how="left").join(images, how="cross")
            .with_columns(weight=pl.col("tf") * (pl.col("all") - pl.col("df").fill_null(1).cast(pl.Float64).log()))
        )
        h, r = weigh(h), weigh(r)
        norm = lambda of, name: of.group_by("image_id", "row", "n").agg(
            (pl.col("weight") ** 2).sum().sqrt().alias(name), pl.col("tf").sum().alias(f"count_{name}"))
        both = r.join(h, on=["image_id", "n", "gram"], suffix="_h").group_by("image_id", "row", "n").agg(
            (pl.min_horizontal("weight", "weight_h") * pl.col("weight")).sum().alias("dot"))
        bigrams = lambda of: of.select("image_id", "row", size=(pl.col("tokens").list.len().cast(pl.Int64) - 1).clip(0))
        pairs = bigrams(texts).join(bigrams(hypotheses), on="image_id", suffix="_h").with_columns(
            near=(-((pl.col("size_h") - pl.col("size")) ** 2) / 72.0).exp())
        each = (
            both.join(norm(r, "r"), on=["image_id", "row", "n"]).join(norm(h, "h").drop("row"), on=["image_id", "n"])
            .join(pairs, on=["image_id", "row"])
            .group_by("image_id").agg((pl.col("dot") / pl.col("r") / pl.col("h") * pl.col("near")).sum().alias("sum"))
            .join(texts.group_by("image_id").len("refs"), on="image_id")
            .select((pl.col("sum") / pl.col("refs") * 10 / 4).sum())
        )
        best = r.group_by("image_id", "n", "gram").agg(pl.col("tf").max().alias("most"))
        hits = h.join(best, on=["image_id", "n", "gram"], how="left").group_by("n").agg(
            pl.min_horizontal("tf", pl.col("most").fill_null(0)).sum().alias("hits"), pl.col("tf").sum().alias("all")).sort("n")
        size = lambda of: of.select("image_id", size=pl.col("tokens").list.len().cast(pl.Int64))
        nearest = size(texts).join(size(hypotheses), on="image_id", suffix="_h").group_by("image_id").agg(
            pl.col("size").sort_by((pl.col("size") - pl.col("size_h")).abs(), "size").first(), pl.col("size_h").first())
        cider, hits, lengths, count = pl.collect_all([each, hits, nearest.select("size_h", "size").sum(), hypotheses.select(pl.len())])
        return scores(hits["hits"].to_list(), hits["all"].to_list(), lengths.row(0), cider.item() / count.item())


class DuckDB:
    def __init__(self):
        import duckdb

        self.sql = duckdb.connect().execute

    def prepare(self, out, *files):
        reads = " UNION ALL ".join(
            f"SELECT line, '{split_of(file)}' AS split FROM read_csv('{file}', header=false, delim='\x01', quote='', columns={{'line': 'VARCHAR'}})"
            for file in files
        )
        self.sql(f"""COPY (
            WITH cut AS (SELECT split, line[:instr(line, ' ') - 1] AS key, line[instr(line, ' ') + 1:] AS raw FROM ({reads}))
            SELECT split_part(key, '#', 1) AS image_id, split_part(key, '#', 3)::INTEGER AS caption_id,
                replace(CASE WHEN split = 'test' THEN regexp_replace(raw, ':[^ ]*', '', 'g') ELSE raw END, ' ', '') AS caption,
                raw AS caption_raw, split
            FROM cut ORDER BY image_id, caption_id
        ) TO '{out}' (FORMAT parquet, COMPRESSION zstd)""")
        return {"captions": self.sql(f"SELECT count(*) FROM '{out}'").fetchone()[0]}

    def stats(self, table, out):
        pathlib.Path(out).mkdir(parents=True, exist_ok=True)
        put = lambda number, query: self.sql(f"COPY ({query}) TO '{out}/{number}.parquet' (FORMAT parquet, COMPRESSION zstd)")
        figures = "count(*) AS count, avg(n) AS mean, stddev_samp(n) AS std, min(n) AS min, max(n) AS max, " + ", ".join(
            f"quantile_cont(n, {q}) AS {name}" for name, q in QUANTILES.items())
        self.sql(f"CREATE TABLE c AS SELECT image_id, caption, split, length(caption) AS n FROM '{table}'")
        often = "GROUP BY text ORDER BY len DESC, text"
        put(0, f"SELECT {figures} FROM c")
        put(1, f"SELECT split, {figures} FROM c GROUP BY split")
        put(2, "SELECT split, n, count(*) AS len FROM c GROUP BY split, n")
        put(3, "SELECT len, count(*) AS images FROM (SELECT count(*) AS len FROM c GROUP BY image_id) GROUP BY len")
        put(4, f"SELECT text, count(*) AS len FROM (SELECT unnest(string_split(caption, '')) AS text FROM c) WHERE trim(text) <> '' {often}")
        put(5, f"SELECT caption[:2] AS text, count(*) AS len FROM c WHERE n >= 2 {often} LIMIT 50")
        put(6, f"SELECT caption[:4] AS text, count(*) AS len FROM c WHERE n >= 4 {often} LIMIT 50")
        put(7, """SELECT caption, count(*) AS len, count(DISTINCT image_id) AS images,
            array_to_string(list_sort(list_distinct(list(split))), ',') AS splits
            FROM c GROUP BY caption HAVING count(*) > 1 ORDER BY len DESC, caption""")
        captions, mean = self.sql("SELECT count(*), avg(n) FROM c").fetchone()
        repeated = self.sql(f"SELECT sum(len) FROM '{out}/7.parquet'").fetchone()[0]
        opening = self.sql(f"SELECT text FROM '{out}/5.parquet' LIMIT 1").fetchone()[0]
        return {"captions": captions, "mean": mean, "repeated": int(repeated or 0), "opening": opening}

    def evaluate(self, predicted, references):
        read = "SELECT image_id, row_number() OVER () AS row, regexp_extract_all(lower(caption), '" + TOKENS + "') AS t FROM"
        grams = lambda of: f"""SELECT image_id, row, n, gram, count(*) AS tf FROM (
            SELECT image_id, row, n, unnest(list_transform(range(1, len(t) - n + 1), lambda i: array_to_string(t[i:i + n], ' '))) AS gram
            FROM {of}, (SELECT unnest([0, 1, 2, 3]) AS n)) GROUP BY ALL"""
        weigh = lambda of: f"""SELECT {of}.*, tf * ((SELECT ln(count(*)) FROM h) - ln(coalesce(df, 1))) AS weight
            FROM {of} LEFT JOIN df USING (n, gram)"""
        norm = lambda of: f"SELECT image_id, row, n, sqrt(sum(weight * weight)) AS norm FROM {of} GROUP BY ALL"
        for name, query in {
            "h": f"{read} '{predicted}'",
            "r": f"{read} '{references}' SEMI JOIN h USING (image_id)",
            "hg": grams("h"),
            "rg": grams("r"),
            "df": "SELECT n, gram, count(DISTINCT image_id) AS df FROM rg GROUP BY ALL",
            "hw": weigh("hg"),
            "rw": weigh("rg"),
        }.items():
            self.sql(f"CREATE TEMP TABLE {name} AS {query}")
        cider = self.sql(f"""
            WITH dots AS (SELECT rw.image_id, rw.row, n, sum(least(rw.weight, hw.weight) * rw.weight) AS dot
                    FROM rw JOIN hw USING (image_id, n, gram) GROUP BY ALL),
                pairs AS (SELECT r.image_id, r.row, exp(-pow(greatest(len(h.t) - 1, 0) - greatest(len(r.t) - 1, 0), 2) / 72) AS near
                    FROM r JOIN h USING (image_id)),
                sums AS (SELECT image_id, sum(dot / a.norm / b.norm * near) AS sum FROM dots
                    JOIN ({norm('rw')}) a USING (image_id, row, n) JOIN ({norm('hw')}) b USING (image_id, n)
                    JOIN pairs ON pairs.row = dots.row GROUP BY image_id)
            SELECT sum(sum / refs) * 10 / 4 / (SELECT count(*) FROM h)
            FROM sums JOIN (SELECT image_id, count(*) AS refs FROM r GROUP BY image_id) USING (image_id)""").fetchone()[0]
        hits = self.sql("""SELECT sum(least(tf, coalesce(most, 0))), sum(tf) FROM hg
            LEFT JOIN (SELECT image_id, n, gram, max(tf) AS most FROM rg GROUP BY ALL) USING (image_id, n, gram)
            GROUP BY n ORDER BY n""").fetchall()
        lengths = self.sql("""SELECT sum(ours), sum(theirs) FROM (SELECT any_value(len(h.t)) AS ours,
            arg_min(len(r.t), (abs(len(r.t) - len(h.t)), len(r.t))) AS theirs FROM r JOIN h USING (image_id) GROUP BY image_id)""").fetchone()
        return scores([int(hit) for hit, _ in hits], [int(count) for _, count in hits], lengths, cider)


class Pandas:
    def __init__(self):
        import pandas

        self.pd = pandas

    def prepare(self, out, *files):
        frames = []
        for file in files:
            with open(file, encoding="utf-8") as stream:
                lines = self.pd.Series(stream.read().splitlines(), dtype="str")
            cut = lines.str.split(" ", n=1, expand=True)
            key = cut[0].str.split("#", expand=True)
            words = cut[1].str.replace(":[^ ]*", "", regex=True) if split_of(file) == "test" else cut[1]
            frames.append(self.pd.DataFrame({"image_id": key[0], "caption_id": key[2].astype("int32"), "caption": words.str.replace(" ", ""),
                                             "caption_raw": cut[1], "split": split_of(file)}))
        found = self.pd.concat(frames).sort_values(["image_id", "caption_id"], ignore_index=True)
        found.to_parquet(out, compression="zstd")
        return {"captions": len(found)}

    def stats(self, table, out):
        out = pathlib.Path(out)
        out.mkdir(parents=True, exist_ok=True)
        found = self.pd.read_parquet(table, columns=["image_id", "caption", "split"])
        found["n"] = found["caption"].str.len()
        figures = lambda lengths: lengths.describe(percentiles=list(QUANTILES.values()))
        often = lambda texts: texts.value_counts().rename_axis("text").reset_index().sort_values(["count", "text"], ascending=[False, True])
        by_caption = found.groupby("caption")
        repeated = by_caption.agg(len=("n", "size"), images=("image_id", "nunique"), splits=("split", lambda s: ",".join(sorted(set(s)))))
        chars = self.pd.Series(list("".join(found["caption"])))
        tables = [
            figures(found["n"]).to_frame(), found.groupby("split")["n"].apply(figures).to_frame(),
            found.groupby(["split", "n"]).size().to_frame("len"), found.groupby("image_id").size().value_counts().to_frame("images"),
            often(chars[chars.str.strip() != ""]),
            *(often(found.loc[found["n"] >= n, "caption"].str[:n]).head(50) for n in (2, 4)),
            repeated[repeated["len"] > 1].reset_index().sort_values(["len", "caption"], ascending=[False, True]),
        ]
        for number, frame in enumerate(tables):
            frame.to_parquet(out / f"{number}.parquet", compression="zstd")
        return {"captions": len(found), "mean": found["n"].mean(), "repeated": int(tables[7]["len"].sum()), "opening": tables[5]["text"].iloc[0]}


if __name__ == "__main__":
    who = {"polars": Polars, "duckdb": DuckDB, "pandas": Pandas}
    if len(sys.argv) < 3 or sys.argv[1] not in who:
        sys.exit(__doc__)
    peer, work = who[sys.argv[1]](), sys.argv[2]
    print("{}" if work == "start" else json.dumps(getattr(peer, work)(*sys.argv[3:])))
