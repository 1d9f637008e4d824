from trainers.prompts import draw_rows

SEEDS = (42, 7, 0)


def draw(count=50, seeds=SEEDS, rank=0, num_ranks=2, num_rows=1000):
    return draw_rows(num_rows, count, seeds=seeds, rank=rank, num_ranks=num_ranks)


def test_the_same_seeds_draw_the_same_rows_and_others_draw_others():
    assert draw() == draw()
    for position in range(3):
        other = tuple(seed + (place == position) for place, seed in enumerate(SEEDS))
        assert draw(seeds=other) != draw()


def test_ranks_draw_different_rows():
    assert draw(rank=0) != draw(rank=1)


def test_all_rows_are_drawn_equally_often():
    counts = [draw(count=20_000, num_rows=10, rank=1).count(row) for row in range(10)]
    assert sum(counts) == 20_000
    assert max(abs(count - 2000) for count in counts) < 200  # 4.7 standard deviations
