// Text in five languages for the tests.
#pragma once

#include <string>
#include <vector>

namespace perdure {

inline const std::vector<std::string>& SampleTexts() {
  static const auto* const texts = new std::vector<std::string>{
      "The quick brown fox jumps over the lazy dog. The train that the engineers watched never "
      "stopped, although the "
      "nodes on which it travelled came and went, and the curve that they drew was the same curve "
      "every time.\n"
      "\tA second paragraph has a tab,  two spaces and a number: 1,234.56 €.\n",
      "Portez ce vieux whisky au juge blond qui fume. Où la forêt s’éclaircit, l’été, naïvement, "
      "des élèves façonnaient "
      "un œuvre : « très cher », dit-elle, « garçon, ça suffit ! » Les machines s’arrêtaient, le "
      "calcul continuait.\n",
      "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Die Rechner fielen aus, "
      "doch die Rechnung ging "
      "weiter, als wäre nichts geschehen; „Übermäßig langsam“ war sie nie.\n",
      "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; ¿añoraba a su querido "
      "cachorro? ¡Sí! Las "
      "máquinas se detenían, pero el cálculo seguía adelante sin perder un solo paso.\n",
      "Quel vituperabile xenofobo zelante assaggia il whisky ed esclama: alleluja! Perché è così? "
      "Le macchine si "
      "fermavano, ma il calcolo andava avanti, più lento e però uguale, città dopo città.\n",
  };
  return *texts;
}

}  // namespace perdure
