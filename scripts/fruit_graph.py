"""Computational graphs: the taxed price of apples and oranges, forward and backward."""

from __future__ import annotations

from cli import Parser, run

from nnxp import Add, Multiply

APPLE, APPLES, ORANGE, ORANGES, TAX = 100, 2, 150, 3, 1.1


def main() -> None:
    Parser(description=__doc__).parse_args()
    apple_node, tax_node = Multiply(), Multiply()
    total = tax_node.forward(apple_node.forward(APPLE, APPLES), TAX)
    d_price, d_tax = tax_node.backward(1)
    d_apple, d_apples = apple_node.backward(d_price)
    print(f"{APPLES} apples at {APPLE}, tax {TAX}: {total:.2f}")
    print(f"gradients: price {d_apple:.2f}, apples {d_apples:.2f}, tax {d_tax:.2f}")

    apple_node, orange_node, sum_node, tax_node = Multiply(), Multiply(), Add(), Multiply()

    apple_price = apple_node.forward(APPLE, APPLES)
    orange_price = orange_node.forward(ORANGE, ORANGES)
    price = sum_node.forward(apple_price, orange_price)
    total = tax_node.forward(price, TAX)

    d_price, d_tax = tax_node.backward(1)
    d_apple_price, d_orange_price = sum_node.backward(d_price)
    d_orange, d_oranges = orange_node.backward(d_orange_price)
    d_apple, d_apples = apple_node.backward(d_apple_price)

    print(f"{APPLES} apples at {APPLE}, {ORANGES} oranges at {ORANGE}, tax {TAX}: {total:.2f}")
    print("gradient of the total for each input:")
    for name, gradient in [
        ("apple", d_apples),
        ("orange", d_oranges),
        ("apple's price", d_apple),
        ("orange's price", d_orange),
        ("tax", d_tax),
    ]:
        print(f"  {name:<15}{gradient:8.2f}")


if __name__ == "__main__":
    run(main)
