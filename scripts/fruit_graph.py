"""Computational graphs: the cost of fruit, and its gradient for each input.

Each node multiplies or adds two numbers. The forward pass goes through the nodes from the inputs to
the total. The backward pass goes through the same nodes in reverse, and computes the gradient of
each input: the increase of the total if this input increases by 1. Compare the gradients with the
totals that are recomputed for each changed input.
"""

from __future__ import annotations

from cli import Parser, run

from nnxp import Add, Multiply

APPLE_PRICE, APPLES, ORANGE_PRICE, ORANGES, TAX = 100, 2, 150, 3, 1.1


def main() -> None:
    Parser(description=__doc__).parse_args()

    print(f"1. {APPLES} apples at {APPLE_PRICE}, multiplied by the tax of {TAX}")
    apple_node, tax_node = Multiply(), Multiply()

    apple_cost = apple_node.forward(APPLE_PRICE, APPLES)
    total = tax_node.forward(apple_cost, TAX)
    print(f"forward:  apples {apple_cost:.2f}, total {total:.2f}")

    d_total = 1  # the gradient of the total with respect to itself
    d_apple_cost, d_tax = tax_node.backward(d_total)
    d_apple_price, d_apples = apple_node.backward(d_apple_cost)
    print(f"backward: total {d_total:.2f}, tax {d_tax:.2f}, cost of the apples {d_apple_cost:.2f},")
    print(f"          price of an apple {d_apple_price:.2f}, number of apples {d_apples:.2f}")
    print(f"One more apple costs {d_apples:.2f} more.")
    print(f"If the price of an apple rises by 1, the total rises by {d_apple_price:.2f}.\n")

    print(f"2. {APPLES} apples at {APPLE_PRICE} and {ORANGES} oranges at {ORANGE_PRICE}, tax {TAX}")
    apple_node, orange_node, sum_node, tax_node = Multiply(), Multiply(), Add(), Multiply()

    apple_cost = apple_node.forward(APPLE_PRICE, APPLES)
    orange_cost = orange_node.forward(ORANGE_PRICE, ORANGES)
    cost = sum_node.forward(apple_cost, orange_cost)
    total = tax_node.forward(cost, TAX)
    print(f"forward:  apples {apple_cost:.2f}, oranges {orange_cost:.2f}, total {total:.2f}")

    d_cost, d_tax = tax_node.backward(1)
    d_apple_cost, d_orange_cost = sum_node.backward(d_cost)
    d_orange_price, d_oranges = orange_node.backward(d_orange_cost)
    d_apple_price, d_apples = apple_node.backward(d_apple_cost)

    print("backward: the gradient of the total for each input, and the total if it is larger by 1")
    inputs = [APPLE_PRICE, APPLES, ORANGE_PRICE, ORANGES, TAX]
    names = ["price of an apple", "apples", "price of an orange", "oranges", "tax"]
    gradients = [d_apple_price, d_apples, d_orange_price, d_oranges, d_tax]
    for i, (name, gradient) in enumerate(zip(names, gradients, strict=True)):
        price1, count1, price2, count2, tax = (x + (i == j) for j, x in enumerate(inputs))
        anew = (price1 * count1 + price2 * count2) * tax
        print(f"  {name:<18}  {gradient:7.2f}   {total:.2f} + {gradient:.2f} = {anew:.2f}")


if __name__ == "__main__":
    run(main)
